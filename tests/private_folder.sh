# shellcheck shell=bash
# Sourced by the scripts that prepare a suite's machine, most of them as root.

# Make a folder whose files are this user's alone; refuse one that somebody else owns, or that a link leads to.
private_folder() { # folder
    mkdir -p "$1"
    if [[ -L ${1%/} || ! -O $1 ]]; then
        echo "error: $1 is not a folder of your own, and files of somebody else's could be waiting in it; remove it" >&2
        exit 1
    fi
    chmod go-w "$1"
}
