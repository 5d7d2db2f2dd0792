# Which targets there are. The rules that make files are in workflow/rules; what they do is in
# model/ and evaluation/. docs/architecture.md has the table.

import re
import subprocess
import sys
from pathlib import Path

# The packages are this checkout's, whichever checkout the environment was made for.
sys.path.insert(0, workflow.basedir)

from model.configuration import ConfigurationError
from workflow.lock import remove_stale_lock
from workflow.pipeline import (
    EFFECTIVE_CONFIG,
    ENVIRONMENT,
    import_from,
    read_pipeline,
    store_digest,
    typed,
)
from workflow.sources import files_under, stage_sources
from workflow.stage import RESULTS, failures, print_summary, report_is_new

import_from(workflow.basedir)
if workflow.is_main_process and remove_stale_lock():
    print("an earlier run was killed; its lock is removed", file=sys.stderr)


configfile: "config/config.yaml"


report: "workflow/report/workflow.rst"


overrides = workflow.config_settings.config
config.update({key: typed(config[key]) for key in overrides})
origin = [str(file) for file in workflow.configfiles] + ["--config"] * bool(overrides)
try:
    pipeline = read_pipeline(config, ", ".join(origin))
except ConfigurationError as error:
    # The message is for a person; a WorkflowError would add a traceback.
    sys.exit(str(error))

MODEL = pipeline.config.model
CONFIGURATIONS = pipeline.config.configurations


wildcard_constraints:
    model=re.escape(MODEL),
    configuration="|".join(map(re.escape, pipeline.names)),


include: "workflow/rules/download.smk"
include: "workflow/rules/compile.smk"
include: "workflow/rules/trace.smk"
include: "workflow/rules/generate.smk"
include: "workflow/rules/latency.smk"
include: "workflow/rules/accuracy.smk"
include: "workflow/rules/track.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/champion.smk"
include: "workflow/rules/contest.smk"


rule evaluate_all:
    default_target: True
    input:
        rules.report.output,
        rules.track_init.output,


rule compile_all:
    input:
        expand(rules.compile.output, model=MODEL, configuration=CONFIGURATIONS),


rule trace_all:
    input:
        expand(rules.trace.output, model=MODEL, configuration=CONFIGURATIONS),


rule contest_submission:
    input:
        expand(rules.contest.output, configuration=CONFIGURATIONS),


rule track_all:
    input:
        expand(rules.track.output, model=MODEL, configuration=CONFIGURATIONS),
        rules.track_init.output,


onstart:
    pipeline.write_config()


onsuccess:
    if report_is_new(RESULTS):
        print_summary(RESULTS)
        print("done: results/report.html, results/summary.json")


onerror:
    failed = failures(RESULTS, MODEL, CONFIGURATIONS)
    if failed:
        # The configurations that did finish deserve their report; the failed ones are red in it.
        command = [
            sys.executable,
            "-m",
            "evaluation.report",
            "--partial",
            "--config",
        ]
        subprocess.run([*command, str(EFFECTIVE_CONFIG)], check=False)
    for line in failed:
        print("failed:", line, file=sys.stderr)
