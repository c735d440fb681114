"""Errors in one sentence, and the code a command ends with."""

import errno
import os

import pytest
import torch

from console.errors import InputError, explain_os_error, nearest, run_command


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota is used up"),
        (errno.EFBIG, "exceeds the size limit"),
        (errno.EACCES, "permission is denied"),
        (errno.EPERM, "not permitted"),
        (errno.EROFS, "file system is read-only"),
        (errno.ENOENT, "no such file or folder"),
        (errno.ENOTDIR, "is a file, not a folder"),
        (errno.EEXIST, "the path already exists"),
        (errno.EISDIR, "it is a folder; name a file"),
        (errno.ENAMETOOLONG, "name is too long"),
        (errno.ELOOP, os.strerror(errno.ELOOP)),
    ],
)
def test_every_cause_has_a_sentence_with_a_remedy(code, reason):
    error = explain_os_error(OSError(code, os.strerror(code), "ignored"), "write the mask to out/x")
    assert isinstance(error, InputError)
    text = str(error)
    assert text.startswith("cannot write the mask to out/x: ")
    assert reason in text
    assert "; " in text, "says what to do"
    assert "\n" not in text


def test_errors_without_a_number():
    assert "no such file" in str(explain_os_error(FileNotFoundError("gone"), "read x"))
    assert "the pipe broke" in str(explain_os_error(OSError("the pipe broke"), "read x"))


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("multiflw", " (did you mean 'multiflow'?)"),
        ("lmap", " (did you mean 'lamp'?)"),
        ("multiflow", " (did you mean 'multiflow'?)"),
        ("zzz", ""),
        ("", ""),
    ],
)
def test_nearest(word, hint):
    assert nearest(word, iter(["omp", "lamp", "multiflow", "snip"])) == hint
    assert nearest(word, []) == ""


def test_bad_input_ends_with_two_and_one_line(capsys):
    def main():
        raise InputError("the sparsity 0 is not between 0 and 100")

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: the sparsity 0 is not between 0 and 100\n")


def test_interruption_ends_with_130(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_success_and_bugs_pass_through(capsys):
    run_command(lambda: print("done"))
    assert capsys.readouterr().out == "done\n"
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run_command(lambda: 1 / 0)


@pytest.mark.parametrize("ask", [lambda: torch.empty(1 << 60), lambda: bytearray(1 << 62)])
def test_more_memory_than_there_is(ask, capsys):
    with pytest.raises(SystemExit) as caught:
        run_command(ask)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: the device is out of memory: use a smaller batch_size")
    with pytest.raises(RuntimeError, match="size of tensor"):
        run_command(lambda: torch.ones(2) + torch.ones(3))


@pytest.mark.parametrize(
    ("body", "code", "err"),
    [
        ("raise InputError('no such model')", 2, "error: no such model\n"),
        ("signal.raise_signal(signal.SIGINT)", 130, "interrupted\n"),
        ("signal.raise_signal(signal.SIGTERM)", 143, "interrupted\n"),
        ("pass", 0, ""),
    ],
)
def test_codes_as_a_shell_sees_them(body, code, err, run_process):
    program = f"import signal\nfrom console.errors import *\ndef main():\n    {body}\nrun_command(main)"
    done = run_process("-c", program)
    assert (done.returncode, done.stderr) == (code, err)


@pytest.mark.parametrize(("body", "code"), [("raise InputError('no such model')", 2), ("pass", 0)])
def test_a_group_member_exits_before_finalisation(body, code, run_process, tmp_path):
    """gloo's threads may still want the interpreter then, and would end the process with SIGABRT instead."""
    program = f"""
import atexit, sys
import torch.distributed as dist
from console.errors import *
class Late:
    def __del__(self):
        print("taken down", flush=True)
late = Late()
atexit.register(print, "exit function")
def main():
    dist.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
    print("done")
    {body}
run_command(main)"""
    done = run_process("-c", program)
    assert (done.returncode, done.stdout) == (code, "done\nexit function\n"), done.stderr
    alone = run_process("-c", program.replace("    dist.init", "    0 and dist.init"))
    assert (alone.returncode, alone.stdout) == (code, "done\nexit function\ntaken down\n"), alone.stderr
