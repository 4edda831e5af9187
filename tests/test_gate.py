"""The forgetting gate: what is too much, what it says, and exit code 3 after everything is written."""

import json
from pathlib import Path

import pytest

from data_recipes.artefact import UserError, read_artefact, write_artefact
from eval.gate import check_gate, check_gate_languages, gate_losses, gate_message
from finetune import cli
from finetune.checkpoints.stop_signals import EXIT_CODES
from finetune.config import DataConfig, RunConfig, load_run_config
from finetune.eval_options import GATE_EXIT_CODE, EvalConfig, GateConfig, GateFailed
from finetune.launch import LOST_EXIT_CODE
from finetune.training_options import TrainConfig

SMALLEST = "name: small\ndata: {recipe: none.yaml}\ntrain: {steps: 10, learning_rate: 1e-3}\n"


def comparison(low, difference, high):
    return {
        "base": 0.9,
        "tuned": 0.9 + difference,
        "difference": difference,
        "low": low,
        "high": high,
        "n": 9,
    }


def made_up_metrics():
    exact = {
        "target": comparison(0.1, 0.2, 0.3),
        "general": comparison(-0.06, -0.03, 0.0),
        "by_language": {
            "target": {"ta": comparison(0.1, 0.2, 0.3), "hi": comparison(-0.2, -0.1, -0.05)},
            "general": {"en": comparison(-0.04, -0.02, 0.01), "hi": comparison(-0.01, 0.01, 0.02)},
        },
    }
    bits = {"target": None, "general": comparison(0.02, 0.05, 0.09), "by_language": {}}
    return {"exact_match": exact, "bits_per_byte": bits}


def lost(**gate):
    return [one.name for one in gate_losses(made_up_metrics(), GateConfig(**gate)) if one.is_too_much]


def test_the_measured_loss_is_compared_or_its_whole_interval():
    assert lost(languages=("general", "en"), max_loss=0.02) == ["general"]  # 0.02 lost is not more than 0.02
    assert lost(languages=("general", "en"), max_loss=0.019) == ["general", "en"]
    assert lost(languages=("general", "en"), max_loss=0.0, by="interval") == []
    assert lost(languages=("hi",), max_loss=0.049, by="interval") == ["hi"]
    assert lost(languages=("hi",), max_loss=0.051, by="interval") == []
    assert lost(languages=("ta", "target"), max_loss=0.0) == []


def test_a_language_of_both_groups_is_asked_in_both():
    found = gate_losses(made_up_metrics(), GateConfig(languages=("hi",)))
    assert [(one.place, one.is_too_much) for one in found] == [
        ("/metrics/exact_match/by_language/target/hi", True),
        ("/metrics/exact_match/by_language/general/hi", False),
    ]


def test_more_bits_are_a_loss():
    gate = GateConfig(metric="bits_per_byte", max_loss=0.04)
    (found,) = gate_losses(made_up_metrics(), gate)
    assert (found.loss, found.low, found.high, found.is_too_much) == (0.05, 0.02, 0.09, True)


def test_the_message_names_language_loss_interval_and_threshold():
    gate = GateConfig(languages=("general", "hi"), max_loss=0.02)
    message = gate_message(gate_losses(made_up_metrics(), gate), gate, Path("runs/a/results.json"))
    assert message == (
        "forgetting gate: too much was lost\n"
        "  general: Exact match lost 0.0300 (95 % interval +0.0000 to +0.0600, 9 rows); the measured loss is "
        "above eval.gate.max_loss=0.02 (/metrics/exact_match/general)\n"
        "  hi: Exact match lost 0.1000 (95 % interval +0.0500 to +0.2000, 9 rows); the measured loss is "
        "above eval.gate.max_loss=0.02 (/metrics/exact_match/by_language/target/hi)\n"
        "  written: runs/a/results.json; train for less, add rows of that language (train.mixture, "
        "train.replay), or raise max_loss"
    )
    passed = GateConfig(languages=("ta",))
    assert gate_message(gate_losses(made_up_metrics(), passed), passed, Path("r")) is None


def test_a_language_without_rows_is_an_error_that_names_those_that_have_some():
    with pytest.raises(
        UserError, match="names 'ur', and no test row counts .* rows are en, hi, ta; name one"
    ):
        gate_losses(made_up_metrics(), GateConfig(languages=("en", "ur")))
    with pytest.raises(UserError, match="names 'target', and no test row"):
        gate_losses(made_up_metrics(), GateConfig(languages=("target",), metric="bits_per_byte"))
    check_gate_languages(None, (), ())
    check_gate_languages(GateConfig(languages=("en", "general")), {"en"}, {"general"})
    with pytest.raises(UserError, match="names 'general', and no test row .* rows are ta"):
        check_gate_languages(GateConfig(), {"ta"}, {"target"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("eval.gate.languages=[]", "eval.gate.languages = ().*name at least one"),
        ("eval.gate.max_loss=-0.1", "eval.gate.max_loss = -0.1: must be at least 0"),
        ("eval.gate.metric=bleu", "must be one of exact_match, chrf, bits_per_byte, script_share"),
        ("eval.gate.by=points", "must be one of point, interval; nearest: point"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(tmp_path, change, message):
    (tmp_path / "run.yaml").write_text(SMALLEST)
    with pytest.raises(UserError, match=message):
        load_run_config(tmp_path / "run.yaml", [change])


def test_there_is_no_gate_unless_it_is_asked_for(tmp_path):
    (tmp_path / "run.yaml").write_text(SMALLEST)
    assert load_run_config(tmp_path / "run.yaml").eval.gate is None
    assert load_run_config(tmp_path / "run.yaml", ["eval.gate={}"]).eval.gate == GateConfig()
    check_gate(load_run_config(tmp_path / "run.yaml"))  # reads nothing


def finished(folder, gate):
    write_artefact(folder / "results.json", "eval_results", {}, {"metrics": made_up_metrics()})
    return RunConfig(
        name="a",
        output=str(folder),
        data=DataConfig(recipe="none.yaml"),
        train=TrainConfig(steps=1, learning_rate=0.1),
        eval=EvalConfig(gate=gate),
    )


def test_a_finished_run_passes_or_fails(tmp_path):
    check_gate(finished(tmp_path, GateConfig(languages=("ta",))))
    with pytest.raises(GateFailed, match="general: Exact match lost 0.0300"):
        check_gate(finished(tmp_path, GateConfig()))


def test_the_command_ends_with_3_and_one_message_when_all_is_written(tmp_path, monkeypatch, capsys):
    """`run` with stages that write what the real ones write: the gate is asked last."""

    def writes(stage):
        def function(config):
            for name in stage.outputs:
                write_artefact(Path(config.output) / name, "made_up", {}, {"content_hash": ""})
            report = {"exact_match": {"target": comparison(0, 0, 0), "general": None}}
            (Path(config.output) / "report.json").write_text(json.dumps(report))
            finished(Path(config.output), config.eval.gate)

        return function

    from finetune import run

    stages = [run.Stage(name, (f"{name}.made",), lambda config: {}) for name in ("train", "eval", "report")]
    monkeypatch.setattr(run, "STAGES", stages)
    monkeypatch.setattr(run, "STAGE_FUNCTIONS", {stage.name: writes(stage) for stage in stages})
    (tmp_path / "run.yaml").write_text(SMALLEST + f"output: {tmp_path}/out\n")
    arguments = ["run", str(tmp_path / "run.yaml")]
    assert cli.main([*arguments, "eval.gate.languages=[ta]"]) == 0
    capsys.readouterr()
    assert (
        cli.main([*arguments, "eval.gate.languages=[en]", "eval.gate.max_loss=0.01"]) == GATE_EXIT_CODE == 3
    )
    out, err = capsys.readouterr()
    assert "report:" in out and "en: Exact match lost 0.0200" in err and err.count("forgetting gate") == 1
    assert read_artefact(tmp_path / "out" / "results.json", "eval_results")
    assert cli.main([*arguments, "eval.gate.languages=[ur]"]) == 2
    assert "names 'ur', and no test row" in capsys.readouterr().err


def test_its_exit_code_is_no_other_ones():
    others = [0, 1, 2, LOST_EXIT_CODE, *EXIT_CODES.values()]
    assert GATE_EXIT_CODE not in others and len(set(others)) == len(others)
