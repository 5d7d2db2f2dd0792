"""Which published rows are predicted: by rule, not by fit."""

from benchmarks.published import cases, rows

TABLE = rows.read_rows()
TAKEN = cases.taken(TABLE)


def row(**changes):
    """A row that every rule takes, with changes."""
    kept = {
        "id": "x-001",
        "group": "autocomp",
        "kernel": "a kernel",
        "shape": "M1",
        "dtype": "fp32",
        "device": "trn1.2xlarge 1 NC",
        "measured_us": "10",
        "metric": "nki.benchmark p99",
        "code_ref": "file.py",
        "confidence": "A",
        "notes": "",
    }
    return kept | changes


def test_a_plain_kernel_row_is_taken():
    assert rows.why_not(row()) is None


def test_every_rule_has_a_row_that_only_it_refuses():
    broken = [
        row(group="trn2-isa"),
        row(measured_us=""),
        row(confidence="C"),
        row(device="trn2.3xlarge LNC2 (2 NC)"),
        row(metric="host timed"),
        row(kernel="matmul compiler (nkipy -O2)"),
        row(notes="spill 67108864/83886080"),
    ]
    reasons = [reason for reason, _ in rows.RULES]
    assert [rows.why_not(r) for r in broken] == reasons


def test_rules_read_nothing_that_a_prediction_could_change():
    for taken in TAKEN:
        original = next(r for r in TABLE if r["id"] == taken)
        slower = dict(original, measured_us=str(10 * float(original["measured_us"])))
        assert rows.why_not(slower) is None
        assert cases.case(slower) == TAKEN[taken]


def test_a_source_that_reports_no_spill_is_taken():
    assert rows.why_not(row(notes="hbm rd 1 wr 1; spill 0/0; hw flops 1")) is None


def test_a_ci_threshold_without_a_device_is_not_taken():
    assert rows.why_not(row(device="trn (CI; device not named)")) is not None


def test_at_least_forty_rows_of_five_sources():
    sources = {rows.SOURCES[r["group"]] for r in TABLE if r["id"] in TAKEN}
    assert len(TAKEN) >= 40
    assert len(sources) >= 5


def test_suspect_rows_are_never_taken():
    grades = {r["confidence"] for r in TABLE if r["id"] in TAKEN}
    assert grades <= {"A", "B"}


def test_what_the_rules_take_is_either_predicted_or_named_as_missing():
    by_rule = {r["id"] for r in TABLE if rows.why_not(r) is None}
    missing = set(cases.not_written(TABLE))
    assert by_rule == set(TAKEN) | missing
    assert not set(TAKEN) & missing


def test_shapes_come_from_the_table():
    launch = TAKEN["sdk-kopt-004"].launches[0]
    assert launch.tensors == ((8192, 4096), (8192, 8192))
    assert dict(launch.parameters) == {"m_tiles": 16, "n_tiles": 2, "k_tiles": 8}
    assert TAKEN["chau-attn-015"].launches[0].tensors == ((128, 4096),) * 3
    assert TAKEN["chau-attn-015"].launches[0].dtype == "bfloat16"


def test_the_unfused_mlp_is_two_launches():
    assert [launch.kernel for launch in TAKEN["chau-mlp-001"].launches] == [
        "chau_mlp:gemm",
        "chau_mlp:gelu",
    ]


def test_rows_play_on_the_generation_they_were_measured_on():
    for name, case in TAKEN.items():
        device = next(r for r in TABLE if r["id"] == name)["device"]
        expected = "trn2" if device.startswith("trn2") else "trn1"
        assert {launch.target for launch in case.launches} == {expected}


def test_kda_rows_are_ratios_to_their_own_baseline():
    ratios = cases.ratios(TABLE)
    assert len(ratios) >= 20
    assert not set(ratios) & set(TAKEN)
    kernels = {r["id"]: r["kernel"] for r in TABLE}
    for name, (variant, baseline_row, baseline) in ratios.items():
        assert kernels[baseline_row].split()[0] == kernels[name].split()[0]
        assert variant.target == baseline.target == "trn2"
