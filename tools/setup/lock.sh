#!/usr/bin/env bash
# lock.sh PYTHON: pin the newest libraries that setup.cfg allows: requirements.lock to run, requirements-test.lock to test.
# The files name no index and no host: they hold wherever pip is set up to look.
set -euo pipefail
python=$1
workshop=$(mktemp -d)
trap 'rm -rf "$workshop"' EXIT
"$python" -m venv "$workshop"
"$workshop/bin/pip" --quiet --disable-pip-version-check install pip-tools

compile() {
    CUSTOM_COMPILE_COMMAND="make lock" "$workshop/bin/pip-compile" --quiet --upgrade --allow-unsafe --strip-extras \
        --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options "$@"
}
compile --build-deps-for editable --output-file requirements.lock setup.cfg
# pip-compile sees what the Python that runs it wants. Before 3.11.3 (Debian 12 has 3.11.2) redis wants one more.
if ! grep -q '^async-timeout==' requirements.lock; then
    echo 'async-timeout >= 4.0.3, < 6' > "$workshop/older.in"
    compile --no-header --no-annotate --output-file "$workshop/older.txt" "$workshop/older.in"
    { cat requirements.lock; echo "$(cat "$workshop/older.txt") ; python_full_version < \"3.11.3\""; echo '    # via redis'; } \
        > "$workshop/requirements.lock"
    cp "$workshop/requirements.lock" requirements.lock
fi
compile --extra test --constraint requirements.lock --output-file requirements-test.lock setup.cfg
