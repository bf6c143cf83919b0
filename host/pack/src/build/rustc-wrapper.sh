#!/bin/sh
# Stands between cargo and rustc, and gives crates identities that do not depend on where the sources lie.
#
# Cargo makes `-C metadata` from the absolute path of a path dependency outside of the workspace. It goes into symbol
# names and with them into the order of functions, here and in every dependent crate. Two crates that this takes for
# one make rustc fail, not mix them up.
identity="$CARGO_PKG_NAME $CARGO_PKG_VERSION ${CARGO_MANIFEST_DIR#"$ENCLOS_WORKSPACE"}"
case $CARGO_MANIFEST_DIR in
    "$ENCLOS_WORKSPACE" | "$ENCLOS_WORKSPACE"/*) ;;
    *) identity="$CARGO_PKG_NAME $CARGO_PKG_VERSION outside" ;;
esac
wanted=
for argument in "$@"; do
    case $wanted$argument in
        --crate-name | --crate-type | --cfg | --target) wanted="$argument " ; continue ;;
        "--crate-name "* | "--crate-type "* | "--cfg "* | "--target "*) identity="$identity $wanted$argument" ;;
        panic=* | opt-level=*) identity="$identity $argument" ;;
    esac
    wanted=
done
count=$#
while [ "$count" -gt 0 ]; do
    argument=$1
    shift
    count=$((count - 1))
    case $argument in
        metadata=*) argument="metadata=$identity" ;;
    esac
    set -- "$@" "$argument"
done
exec "$@"
