"""The guard of Apple's GPU driver: installing it where it can't be, and the whole way over a stand-in of the driver."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from steelworks.devices import MPSDevice, driver_guard
from steelworks.devices.driver_guard import (
    DriverGuardError,
    DriverGuardStatistics,
    check_driver_guard,
    driver_guard_installed,
    driver_guard_statistics,
    install_driver_guard,
    uninstall_driver_guard,
)
from steelworks.errors import DeviceRuleError, ForkedProcessError, InvalidInputError
from verification.driver_race import build
from verification.tla.tlc import SPECS

#: What of macOS's headers the guard takes: as much as clang needs to compile it for that system.
HEADERS = {
    "objc/runtime.h": """
typedef struct objc_class *Class;
typedef struct objc_object { Class isa; } *id;
typedef struct objc_selector *SEL;
typedef struct objc_method *Method;
typedef void (*IMP)(void);
Method class_getInstanceMethod(Class, SEL); IMP method_getImplementation(Method);
IMP method_setImplementation(Method, IMP); signed char class_addMethod(Class, SEL, IMP, const char *);
const char *method_getTypeEncoding(Method); const char *class_getName(Class);
Class class_getSuperclass(Class); Class object_getClass(id); SEL sel_registerName(const char *);
""",
    "pthread.h": """
typedef struct { long a[8]; } pthread_mutex_t; typedef struct { long a[2]; } pthread_mutexattr_t;
#define PTHREAD_MUTEX_RECURSIVE 2
int pthread_mutexattr_init(pthread_mutexattr_t *); int pthread_mutexattr_settype(pthread_mutexattr_t *, int);
int pthread_mutexattr_destroy(pthread_mutexattr_t *);
int pthread_mutex_init(pthread_mutex_t *, const pthread_mutexattr_t *);
int pthread_mutex_lock(pthread_mutex_t *); int pthread_mutex_unlock(pthread_mutex_t *);
int pthread_atfork(void (*)(void), void (*)(void), void (*)(void));
""",
    "stdio.h": """
typedef unsigned long size_t; typedef struct file FILE; extern FILE *stderr;
int snprintf(char *, size_t, const char *, ...); int fprintf(FILE *, const char *, ...);
""",
    "string.h": """
typedef unsigned long size_t; void *memcpy(void *, const void *, size_t); void *memset(void *, int, size_t);
""",
}


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A module that has loaded nothing, and a cache of its own."""
    monkeypatch.setattr(driver_guard, "_library", None)
    monkeypatch.setattr(driver_guard, "_dropped", 0)
    monkeypatch.setenv("STEELWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STEELWORKS_CLANG", raising=False)
    monkeypatch.delenv(driver_guard.ENVIRONMENT, raising=False)
    yield tmp_path


@pytest.fixture
def on_a_mac(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As far as the module can see."""
    monkeypatch.setattr(sys, "platform", "darwin")
    return fresh


@pytest.fixture
def stand_in(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Mac whose clang compiles the guard for this machine, over the stand-in of the driver."""
    if missing := build.missing():
        pytest.fail(f"evidence missing: the driver's guard was not compiled. {missing}")
    tools = build.find()
    (fresh / "include").mkdir()
    (fresh / "include" / "objc").symlink_to(tools.headers / "objc")
    flags = f"-fobjc-runtime=gcc -fexceptions -fPIC -shared -w -I{fresh / 'include'} -I{build.OBJC}"
    # The scene's part of the stand-in is of no use here: it tells nobody, and keeps no thread.
    (fresh / "rest.c").write_text(
        "#include <objc/objc.h>\n"
        "void steel_event(const char *name, id object) {}\nvoid between_halves(void) {}\n"
        "void fail(const char *what) { __builtin_trap(); }\n"
    )
    more = f"{build.OBJC / 'standin.m'} {fresh / 'rest.c'}"
    script = f"""#!/bin/sh
if [ "$1" = --version ]; then echo "Apple clang version 17.0.0"; exit 0; fi
echo run >>{fresh / "runs"}
while [ $# -gt 1 ]; do if [ "$1" = -o ]; then out=$2; fi; shift; done
exec {tools.compiler.path} -x objective-c {flags} "$1" {more} -lobjc -pthread -o "$out"
"""
    compiler = fresh / "clang"
    compiler.write_text(script)
    compiler.chmod(0o755)
    monkeypatch.setenv("STEELWORKS_CLANG", str(compiler))
    monkeypatch.setattr(sys, "platform", "darwin")
    return fresh


class Driver:
    """Sends messages to the stand-in of the driver that the loaded guard brings."""

    def __init__(self) -> None:
        library = driver_guard._library
        assert library is not None
        self._objc = ctypes.CDLL("libobjc.so.4")
        for function in (self._objc.sel_get_any_uid, self._objc.objc_msg_lookup):
            function.restype = ctypes.c_void_p
        self._objc.sel_get_any_uid.argtypes = [ctypes.c_char_p]
        self._objc.objc_msg_lookup.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        library.MTLCreateSystemDefaultDevice.restype = ctypes.c_void_p
        device = library.MTLCreateSystemDefaultDevice()
        self.buffer = self.send(self.send(device, "newCommandQueue"), "commandBuffer")

    def send(self, receiver: Any, selector: str) -> Any:
        command = self._objc.sel_get_any_uid(selector.encode())
        method = self._objc.objc_msg_lookup(receiver, command)
        kind = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
        return kind(method)(receiver, command)


def test_it_is_refused_where_there_is_no_apple_gpu(fresh: Path) -> None:
    with pytest.raises(DriverGuardError, match=f"asked for on {sys.platform}; it is for Apple's GPU driver"):
        install_driver_guard()
    assert not driver_guard_installed()


def test_its_error_is_one_of_the_devices() -> None:
    assert issubclass(DriverGuardError, DeviceRuleError)


def test_without_it_there_is_nothing_to_take_out_to_count_or_to_check(fresh: Path) -> None:
    uninstall_driver_guard()
    check_driver_guard()
    assert driver_guard_statistics() == DriverGuardStatistics(calls=0, dropped=0, open_encoders=0)
    assert not driver_guard_installed()


def test_without_a_clang_the_message_says_how_to_get_one(
    on_a_mac: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(on_a_mac))
    with pytest.raises(DriverGuardError, match="no clang here; .*xcode-select --install"):
        install_driver_guard()
    monkeypatch.setenv("STEELWORKS_CLANG", "no-such-clang")
    with pytest.raises(DriverGuardError, match="STEELWORKS_CLANG names 'no-such-clang'"):
        install_driver_guard()


def test_a_clang_that_only_says_where_to_get_one_is_none(
    on_a_mac: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = on_a_mac / "clang"
    stub.write_text("#!/bin/sh\necho 'xcode-select: note: No developer tools were found' >&2\nexit 1\n")
    stub.chmod(0o755)
    monkeypatch.setenv("PATH", str(on_a_mac))
    with pytest.raises(DriverGuardError, match="xcode-select --install"):
        install_driver_guard()


def test_what_the_compiler_says_is_in_the_error(on_a_mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = on_a_mac / "clang"
    stub.write_text(
        '#!/bin/sh\nif [ "$1" = --version ]; then echo clang version 17; exit 0; fi\necho "no SDK" >&2\nexit 1\n'
    )
    stub.chmod(0o755)
    monkeypatch.setenv("STEELWORKS_CLANG", str(stub))
    with pytest.raises(DriverGuardError, match="does not compile with .*no SDK"):
        install_driver_guard()
    assert not list((on_a_mac / "cache").rglob("*.dylib"))


def test_a_forked_child_is_refused(on_a_mac: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_guard, "_pid", os.getpid() - 1)
    with pytest.raises(ForkedProcessError, match="spawn"):
        install_driver_guard()


def used_gpu(monkeypatch: pytest.MonkeyPatch, synchronized: list[str]) -> None:
    mps = SimpleNamespace(
        current_allocated_memory=lambda: 1024, synchronize=lambda: synchronized.append("synchronize")
    )
    backends = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: True))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(mps=mps, backends=backends))  # type: ignore[arg-type]


def test_it_is_refused_while_other_threads_may_be_inside_the_driver(
    on_a_mac: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronized: list[str] = []
    used_gpu(monkeypatch, synchronized)
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name="the other", daemon=True)
    thread.start()
    try:
        with pytest.raises(DriverGuardError, match="the other.*before the first use of the GPU"):
            install_driver_guard()
    finally:
        end.set()
        thread.join()
    assert synchronized == []


def test_a_thread_alone_ends_its_open_encoder_and_installs_it(
    stand_in: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronized: list[str] = []
    used_gpu(monkeypatch, synchronized)
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread()])
    install_driver_guard()
    assert synchronized == ["synchronize"]
    assert driver_guard_installed()


def test_it_is_compiled_once_installed_and_taken_out(stand_in: Path) -> None:
    install_driver_guard()
    install_driver_guard()
    assert driver_guard_installed()
    uninstall_driver_guard()
    assert not driver_guard_installed()
    install_driver_guard()
    assert driver_guard_installed()
    assert (stand_in / "runs").read_text() == "run\n"
    assert len(list((stand_in / "cache" / "driver_guard").rglob("*.dylib"))) == 1
    assert not list((stand_in / "cache").rglob(".making-*"))


def test_calls_are_counted_and_an_open_encoder_keeps_it_in(stand_in: Path) -> None:
    install_driver_guard()
    driver = Driver()
    encoder = driver.send(driver.buffer, "computeCommandEncoder")
    assert driver_guard_statistics() == DriverGuardStatistics(calls=1, dropped=0, open_encoders=1)
    with pytest.raises(
        DriverGuardError, match="can't be taken out: 1 encoders are open; nothing was changed"
    ):
        uninstall_driver_guard()
    driver.send(encoder, "endEncoding")
    assert driver_guard_statistics() == DriverGuardStatistics(calls=2, dropped=0, open_encoders=0)
    uninstall_driver_guard()
    driver.send(driver.send(driver.buffer, "computeCommandEncoder"), "endEncoding")
    assert driver_guard_statistics().calls == 2


def test_a_call_that_was_dropped_is_an_error_once(stand_in: Path) -> None:
    install_driver_guard()
    driver = Driver()
    encoder = driver.send(driver.buffer, "computeCommandEncoder")
    driver.send(encoder, "endEncoding")
    check_driver_guard()
    driver.send(encoder, "endEncoding")
    with pytest.raises(
        DriverGuardError, match="1 calls were made on an encoder that another thread had ended"
    ):
        check_driver_guard()
    check_driver_guard()


@pytest.mark.parametrize("value", ["1", "on", "true"])
def test_the_environment_asks_for_it_at_the_first_use_of_the_gpu(
    fresh: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(driver_guard.ENVIRONMENT, value)
    with pytest.raises(DriverGuardError, match="macOS only"):
        MPSDevice()


@pytest.mark.parametrize("value", ["", "0", "off"])
def test_the_environment_need_not_ask_for_it(
    fresh: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(driver_guard.ENVIRONMENT, value)
    driver_guard.install_if_asked()
    assert not driver_guard_installed()


def test_an_environment_that_says_neither_is_an_error(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(driver_guard.ENVIRONMENT, "maybe")
    with pytest.raises(InvalidInputError, match="STEELWORKS_DRIVER_GUARD='maybe' was set; use 1"):
        driver_guard.install_if_asked()


def test_the_guard_compiles_for_a_mac(tmp_path: Path) -> None:
    if missing := build.missing():
        pytest.fail(f"evidence missing: the driver's guard was not compiled. {missing}")
    for name, text in HEADERS.items():
        path = tmp_path / "include" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    compiler = build.find().compiler
    link_flags = {"-dynamiclib", "-framework", "Metal", "-lobjc"}
    flags = [flag for flag in driver_guard._FLAGS if flag not in link_flags]
    target = ("-target", "arm64-apple-macosx15", "-nostdinc", f"-I{tmp_path / 'include'}")
    made = tmp_path / "guard.o"
    warnings = ("-Wall", "-Wno-incompatible-sysroot", "-Werror")
    done = compiler.run(*target, *flags, *warnings, "-c", "-o", str(made), str(driver_guard.SOURCE))
    assert done.returncode == 0, done.stderr
    assert made.read_bytes()[:4] == b"\xcf\xfa\xed\xfe"  # Mach-O, 64 bit


def test_the_model_speaks_of_the_file_that_is_shipped() -> None:
    source = driver_guard.SOURCE.read_text()
    assert "verification/tla/DriverRace.tla" in source
    assert "steelworks/devices/_driver_guard/guard.m" in (SPECS / "DriverRace.tla").read_text()
