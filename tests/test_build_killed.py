"""A build that is killed at any moment goes on where it was: same bytes, and nothing finished is redone."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from build_recipes import hashes, part_files, plain_rows, rows_in, stages, write_recipe
from loopback import serving, tamil

from data_recipes.artefact import UserError, read_artefact
from data_recipes.build import BuildOptions, build_dataset

ROOT = Path(__file__).parents[1]


def start(recipe, output, *arguments):
    """A build in a process of its own, in a group that can be killed."""
    command = [sys.executable, "-m", "finetune.cli", "data", str(recipe), "--output", str(output), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_when(process, happened, seconds=60.0):
    """Kill -9 as soon as something has happened; False when the process ended before."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
        if happened():
            process.kill()
            process.wait()
            return True
        time.sleep(0.002)
    process.wait()
    return False


def killed_again_and_again(tmp_path, n_kills, rng, *arguments):
    """Kill a build at random moments, going on each time; check that finished parts stay as they are."""
    recipe = write_recipe(tmp_path, plain_rows(30), rows_per_part=6)
    whole = hashes(build_dataset(recipe, tmp_path / "whole"))
    output, work, n_killed = tmp_path / "data", tmp_path / "data.parts", 0
    n_files = len(part_files(tmp_path / "whole.parts"))
    moments = sorted(rng.randrange(n_files) for _ in range(n_kills))
    for moment in moments:
        before = part_files(work) if work.exists() else {}
        process = start(recipe, output, *arguments)
        n_killed += kill_when(process, lambda: work.exists() and len(part_files(work)) > moment)  # noqa: B023
        after = part_files(work)
        assert {path: after[path] for path in before} == before
    before = part_files(work)
    build_dataset(recipe, output)
    after = part_files(work)
    assert {path: after[path] for path in before} == before
    assert hashes(output) == whole
    return n_killed


def test_a_build_killed_at_three_moments_goes_on_and_gives_the_same_bytes(tmp_path):
    assert killed_again_and_again(tmp_path, 3, random.Random(1)) >= 1


@pytest.mark.slow
def test_a_build_killed_at_many_moments_goes_on_and_gives_the_same_bytes(tmp_path):
    n_killed = killed_again_and_again(tmp_path / "one", 15, random.Random(2))
    assert n_killed + killed_again_and_again(tmp_path / "two", 10, random.Random(3), "--workers", "2") >= 15


def test_a_half_written_part_is_made_again(tmp_path):
    recipe = write_recipe(tmp_path, plain_rows(20), rows_per_part=5)
    whole = hashes(build_dataset(recipe, tmp_path / "data"))
    for stage in ("sources", "text", "finish"):
        summary = sorted((tmp_path / "data.parts" / stage).glob("source-0-00001-*.json"))[0]
        summary.unlink()  # it is written last: without it the rows may be half
        summary.with_suffix(".jsonl").write_bytes(b'{"id": "ha')
    assert hashes(build_dataset(recipe, tmp_path / "data")) == whole


def test_what_a_kill_left_half_written_goes_a_day_later_and_finished_parts_stay(tmp_path):
    recipe, work = write_recipe(tmp_path, plain_rows(8)), tmp_path / "data.parts"
    build_dataset(recipe, tmp_path / "data", ["seed=1"])
    of_other_seed = part_files(work)
    former, fresh = [
        [work / f"order-{name}", work / "text" / f".source-0-00000-{name}.jsonl.partial-{name}"]
        for name in ("former", "fresh")
    ]
    for folder, file in (former, fresh):
        folder.mkdir()
        (folder / "train-000").write_bytes(b"rows")
        file.write_bytes(b"rows")
    yesterday = time.time() - 25 * 3600
    for path in former:
        os.utime(path, (yesterday, yesterday))
    build_dataset(recipe, tmp_path / "data", ["seed=2"])
    assert not any(path.exists() for path in former) and all(path.exists() for path in fresh)
    assert part_files(work).items() >= of_other_seed.items()


def translation(server):
    endpoint = {"base_url": server.url, "model": "m", "concurrency": 1, "timeout_s": 5.0, "n_tries": 1}
    return {"source": "en", "target": "ta", "endpoint": endpoint | {"longest_wait_s": 0.02}, "window": 4}


def test_a_teacher_is_asked_again_for_nothing_that_it_answered(tmp_path):
    process = None

    def answer(number, body):
        if process is not None and number == 9:
            os.kill(process.pid, signal.SIGKILL)  # before the reply is on its way
            process.wait()
        return tamil(number, body)

    with serving() as serve:
        server = serve(answer)
        recipe = write_recipe(tmp_path, plain_rows(12), rows_per_part=5, translate=translation(server))
        process = start(recipe, tmp_path / "data")
        process.wait()
        assert process.returncode == -signal.SIGKILL and len(server.bodies) == 9
        process = None
        folder = build_dataset(recipe, tmp_path / "data")
        sent = [json.dumps(body) for body in server.bodies]
        answered, once_more = sent[:8], sent[8]
        assert len(set(sent)) == len(sent) - 1 and sent.count(once_more) == 2
        assert not set(answered) & set(sent[9:])
        n_sent = len(sent)
        build_dataset(recipe, tmp_path / "other", [], BuildOptions(work=tmp_path / "data.parts"))
        assert len(server.bodies) == n_sent
    manifest = read_artefact(folder / "manifest.json", "dataset_manifest")
    assert manifest["translation"]["n_accepted"] == 12
    assert manifest["languages"].keys() == {"ta-Taml"}


def test_rows_the_teacher_failed_on_are_asked_for_at_the_next_run_and_no_others(tmp_path, capsys):
    is_down = True

    def answer(number, body):
        return (500, {}, b"busy") if is_down and number % 5 == 0 else tamil(number, body)

    with serving() as serve:
        server = serve(answer)
        recipe = write_recipe(
            tmp_path, plain_rows(12), rows_per_part=4, translate=translation(server), test_share=0
        )
        folder = build_dataset(recipe, tmp_path / "data")
        printed = capsys.readouterr().out
        n_missing = read_artefact(folder / "manifest.json", "dataset_manifest")["rejected"]["translate"][
            "teacher"
        ]
        assert (
            n_missing > 0
            and f"{n_missing} rows have no reply of the teacher: run the same command" in printed
        )
        n_sent, is_down = len(server.bodies), False
        failed = {json.dumps(body) for number, body in enumerate(server.bodies, 1) if number % 5 == 0}
        build_dataset(recipe, tmp_path / "data")
        again = {json.dumps(body) for body in server.bodies[n_sent:]}
        assert failed <= again  # and the second texts of rows whose first had failed
        done = stages(capsys.readouterr().out)
        assert done["text"] == (0, 3) and done["translate"][0] + done["translate"][1] == 3
        manifest = read_artefact(folder / "manifest.json", "dataset_manifest")
        assert manifest["rejected"]["translate"] == {} and manifest["n_rows"]["train"] > 0
        build_dataset(recipe, tmp_path / "clean")
    for name in ("manifest.json", "train/data-00000-of-00001.arrow"):
        assert (tmp_path / "clean" / name).read_bytes() == (folder / name).read_bytes()
    assert len(rows_in(folder, "train")) + len(rows_in(folder, "validation")) == 12


def test_a_teacher_that_is_down_stops_the_build_and_what_was_paid_for_is_kept(tmp_path):
    def answer(number, body):
        return tamil(number, body) if number <= 4 else (500, {}, b"down")

    with serving() as serve:
        server = serve(answer)
        settings = translation(server)
        settings["endpoint"]["max_failures"] = 2
        recipe = write_recipe(tmp_path, plain_rows(12), rows_per_part=3, translate=settings)
        with pytest.raises(UserError, match="500"):
            build_dataset(recipe, tmp_path / "data")
        assert not (tmp_path / "data").exists()
        server.answer = tamil
        paid = {json.dumps(body) for body in server.bodies[:4]}
        n_sent = len(server.bodies)
        build_dataset(recipe, tmp_path / "data")
        assert not paid & {json.dumps(body) for body in server.bodies[n_sent:]}
