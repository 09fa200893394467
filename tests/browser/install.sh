#!/usr/bin/env bash
# Install what the browser's tests need: Chromium with apt, on Debian as root, and Playwright as its driver into
# BROWSER_DIR (.cache/browser, unless set). Run again, it installs only what is missing.
set -euo pipefail

root=$(dirname "${BASH_SOURCE[0]}")/../..
dir=${BROWSER_DIR:-$root/.cache/browser}
driver=playwright==1.65.2
. "$root/tests/private_folder.sh"
private_folder "$dir"

if ! command -v chromium >/dev/null; then
    [[ $(id -u) == 0 ]] || { echo "error: installing Chromium takes root; or install the package chromium yourself" >&2; exit 1; }
    {
        apt-get -q -y -o DPkg::Lock::Timeout=300 update
        DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends chromium
    } >"$dir/apt.log" 2>&1 || { tail -20 "$dir/apt.log" >&2; exit 1; }
fi

# Not in the lock: it holds a Node of its own, 170 MB, that nothing else needs.
if [[ ! -d $dir/${driver/==/-}.dist-info ]]; then
    pip install --quiet --disable-pip-version-check --no-deps --upgrade --target "$dir" "$driver" greenlet==3.5.6 pyee==13.0.1
fi
