from pathlib import Path

import pytest

from model.fingerprint import file_sha256, fingerprint
from model.records import GraphTrace


def test_file_sha256_is_the_usual_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_sha256(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_a_path_stands_for_its_content(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("same")
    two.write_text("same")
    assert fingerprint(one) == fingerprint(two) != fingerprint("same")
    two.write_text("other")
    assert fingerprint(one) != fingerprint(two)


def test_order_of_keys_does_not_count_and_of_parts_does() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint("a", "b") != fingerprint("b", "a")
    assert fingerprint("ab") != fingerprint("a", "b")


def test_a_record_counts_by_its_fields() -> None:
    def trace(macs: int) -> GraphTrace:
        return GraphTrace(
            graph="context_encoding",
            bucket="1x64",
            macs_nki=0,
            macs_total=macs,
            macs_needed_nki=0,
            macs_needed_total=macs,
            nki_instructions=0,
            nki_kernel_calls=0,
            nki_hbm_bytes=0,
        )

    assert fingerprint(trace(1)) == fingerprint(trace(1)) != fingerprint(trace(2))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1, 2}])
def test_what_is_no_json_is_refused(value: object) -> None:
    with pytest.raises(TypeError):
        fingerprint(value)
