#!/usr/bin/env bash
# Real Apptainer for Debian 12, which has none: get_apptainer.sh FOLDER unpacks that of Debian unstable there, beside the
# libraries that it was linked with. Nothing is installed. Takes root, patchelf and squashfs-tools.
set -euo pipefail

root=$(realpath -m "$1")
library=$(uname -m)-linux-gnu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work"/{lists/partial,cache/archives/partial,parts,debs,libraries} "$root/lib"
: >"$work/status"
apt-get -qq update
archive=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' 'Component: main' | head -1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $archive sid main" >"$work/sources.list"
# apt with a state of its own, so that this machine's knows nothing of it.
cat >"$work/apt.conf" <<APT
Dir::Etc::sourcelist "$work/sources.list"; Dir::Etc::sourceparts "$work/parts"; Dir::Etc::preferencesparts "$work/parts";
Dir::State::lists "$work/lists"; Dir::State::status "$work/status"; Dir::Cache "$work/cache"; APT::Sandbox::User "root";
APT
(
    export APT_CONFIG=$work/apt.conf
    apt-get -qq update
    cd "$work/debs"
    apt-get -qq download apptainer libc6 libseccomp2 libsqlite3-0
)
dpkg-deb -x "$work"/debs/apptainer_*.deb "$root"
for package in "$work"/debs/lib*.deb; do
    dpkg-deb -x "$package" "$work/libraries"
done
find "$work/libraries" -path "*$library/*" \( -name 'ld-linux*' -o -name '*.so.*' \) -exec cp -a {} "$root/lib/" \;
loader=$(find "$root/lib" -name 'ld-linux*')
for program in usr/bin/apptainer "usr/lib/$library/apptainer/bin/starter"; do
    patchelf --set-interpreter "$loader" --force-rpath --set-rpath "$root/lib" "$root/$program"
done
# Moved, Apptainer looks for its settings below usr, and its starter one folder deeper.
mv "$root/etc" "$root/var" "$root/usr/"
ln -s ../etc ../var "$root/usr/lib/"
# Root of a container or of a virtual machine may lack capabilities that Apptainer would otherwise ask for.
sed -i 's/^root default capabilities = full/root default capabilities = no/' "$root/usr/etc/apptainer/apptainer.conf"
"$root/usr/bin/apptainer" --version
