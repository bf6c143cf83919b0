#!/usr/bin/env bash
# Debian's gdb inside enclaves. Ends with a line "N passed, N failed".
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export ENCLOS_STATE="$work/state" ENCLOS_PLATFORM=emulated
unset DEBUGINFOD_URLS
passed=0 failed=0

# says NAME FILE TEXT: the file contains it.
says() {
    if grep -qF -- "$3" "$2"; then
        passed=$((passed + 1))
        echo "ok      $1"
    else
        failed=$((failed + 1))
        echo "FAILED  $1: no \"$3\" in"
        cat "$2"
    fi
}

# A session with the debugger, in the file `session`. gdb 13 at times trips over a thread that ends while it looks at the
# others: it says that this is a bug of its own, or waits for ever. Then once more.
session() {
    for _ in 1 2 3; do
        "$@" >session 2>&1 || true
        if ! grep -q "A problem internal to GDB\|No unwaited-for children left" session; then return; fi
        echo "again   gdb had a problem internal to it: $(grep -m1 "internal-error\|No unwaited-for" session)"
    done
}
# Kills the debugger, too, when it waits for ever.
limited() { timeout -k 5 120 "$@"; }

(cd "$root" && cargo build -q ${PACKAGES:--p enclos-cli --bins})
enclos=${CARGO_TARGET_DIR:-$root/target}/debug/enclos
cp -r "$here/debugged" "$work/debugged"
cd "$work"

# A plain program, by `enclos run --gdb`. gdb takes its commands from standard input.
cat >commands <<'GDB'
set width 0
break debugged::third_power
run
backtrace
info args
next
next
print square
delete
continue
GDB
inside() { limited env -u CARGO_TARGET_DIR "$enclos" run --gdb debugged "$@" <commands; }
session inside
says "a breakpoint inside stops" session "hit Breakpoint 1, debugged::third_power (number=7)"
says "the backtrace has functions and lines" session "in debugged::main::{closure#0} () at src/main.rs:"
says "the backtrace leads to the thread's start" session "in start_thread ()"
says "arguments are shown" session "number = 7"
says "source lines are shown" session 'println!("{square}");'
says "stepping goes over Linux calls" session "square * number"
says "it goes on to its end" session "exited normally"

# Faults stop gdb where they happen.
printf 'run\nbacktrace 2\nkill\n' >commands
session inside -- poke
says "a fault stops gdb" session "debugged::poke (address=8)"

# A process that runs already, by the script alone.
script=$(env -u CARGO_TARGET_DIR "$enclos" build --json debugged | python3 -c 'import json,sys; print(json.load(sys.stdin)["gdb_script"])')
printf 'set width 0\nset confirm off\nset debuginfod enabled off\n' >quiet
cat >stop.py <<'PYTHON'
import gdb
# Stands for any host program: it is stopped inside, and then found as a stranger finds it.
gdb.execute("break debugged::third_power")
gdb.execute("run")
gdb.execute("info line debugged::poke")
PYTHON
session limited gdb -q -batch -x quiet -x "$script" -x stop.py \
    --args "$enclos" --quiet run debugged/target/enclos/debugged.enclave
says "the script alone finds the symbols" session "hit Breakpoint 1, debugged::third_power (number=7)"
says "places are found by name" session "src/main.rs"

# Without gdb: what faults report.
status=0
"$enclos" --quiet run debugged/target/enclos/debugged.enclave -- poke >report 2>&1 || status=$?
echo "exit $status" >>report
says "a fault names the function" report "0: debugged::poke + 0x"
says "a fault names the callers" report "1: debugged::main + 0x"
says "a fault has its exit code" report "exit 70"
"$enclos" --quiet run debugged/target/enclos/debugged.enclave -- abort >report 2>&1 || true
says "an abort names the function" report ": debugged::give_up + 0x"

sed -i '/debug = true/d' debugged/enclos.toml
status=0
env -u CARGO_TARGET_DIR "$enclos" run --gdb debugged >report 2>&1 || status=$?
echo "exit $status" >>report
says "no other image is debugged, and the cure is named" report "set debug = true in enclos.toml"
says "that is wrong usage" report "exit 2"
env -u CARGO_TARGET_DIR "$enclos" --quiet run debugged -- poke >report 2>&1 || true
says "no other image tells places" report "thread 0: page fault (#PF)"
if grep -q "0x" report; then
    failed=$((failed + 1))
    echo "FAILED  addresses in the report of a production image"
    cat report
fi

echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
