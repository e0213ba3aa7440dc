#!/bin/sh
# Installs federation from one archive, which has all that it needs. `sh install.sh --help` says how; docs/install.md says what lies where.
# scripts/package builds the archives, and a copy of this script that knows their hashes.
set -eu
PINNED=''

usage() {
    cat <<'END'
usage: sh install.sh [OPTIONS] [-- COMMAND...]

Installs federation for you (~/.local) or, as root, for the machine (/usr/local). Needs no root, no Python, no compiler.
An installed version is upgraded; nodes that run go on with theirs until they are restarted. Your token and keys stay.

  --from WHERE     address or folder of the archives, or one archive (default: the folder of this script)
  --version X      this version, not the newest one that is there
  --user           for you alone, in ~/.local; the default unless you are root
  --system         for all users, in /usr/local; the default for root
  --prefix DIR     in DIR/lib/federation and DIR/bin
  --sha256 HASH    the archive must have this SHA-256
  --key KEY        SHA256SUMS must be signed with this Ed25519 key (release.pub: a file, or its text); needs openssl
  --uninstall      remove the program; your token and keys stay
  --purge          with --uninstall: remove this user's token, identity, keys and settings as well
  --help           show this and exit

COMMAND runs when all is installed:  sh install.sh -- join --token-file -
END
}

say() { printf 'install: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }
wrong() { say "$*; --help shows the options"; exit 2; }

from='' version='' prefix='' sha256='' key='' mode=install purge=''
while [ $# -gt 0 ]; do
    option=$1
    case $option in
        --*=*) value=${option#*=} option=${option%%=*}; shift; set -- "$option" "$value" "$@" ;;
    esac
    case $option in
        --from | --version | --prefix | --sha256 | --key)
            [ -n "${2:-}" ] || wrong "$option needs a value"
            case $option in
                --from) from=$2 ;;
                --version) version=$2 ;;
                --prefix) prefix=$2 ;;
                --sha256) sha256=$2 ;;
                --key) key=$2 ;;
            esac
            shift 2 ;;
        --user) [ -n "${HOME:-}" ] || fail "--user: HOME is not set; set it, or give --prefix DIR"
            prefix=$HOME/.local; shift ;;
        --system) prefix=/usr/local; shift ;;
        --uninstall) mode=uninstall; shift ;;
        --purge) purge=1; shift ;;
        --help | -h) usage; exit 0 ;;
        --) shift; break ;;
        *) wrong "no such option: $option" ;;
    esac
done
[ $mode = install ] || [ $# = 0 ] || wrong "--uninstall runs no command"
[ -z "$purge" ] || [ $mode = uninstall ] || wrong "--purge goes with --uninstall"
sha256=$(printf '%s' "$sha256" | tr 'A-F' 'a-f')
case $sha256 in
    '') ;;
    *[!0-9a-f]*) wrong "--sha256: 64 hexadecimal digits, as sha256sum prints them" ;;
    *) [ ${#sha256} = 64 ] || wrong "--sha256: 64 hexadecimal digits, as sha256sum prints them" ;;
esac
case $version in *[!0-9a-z.]*) wrong "--version $version is no version" ;; esac
if [ -z "$prefix" ]; then
    if [ "$(id -u)" = 0 ]; then
        prefix=/usr/local
    else
        [ -n "${HOME:-}" ] || fail "HOME is not set; set it, or give --prefix DIR"
        prefix=$HOME/.local
    fi
fi
case $prefix in /*) ;; *) prefix=$PWD/$prefix ;; esac
prefix=${prefix%/}
lib=$prefix/lib/federation
link=$prefix/bin/federation
target=../lib/federation/current/federation

# Processes that run from a folder, as "PID PID ": only those that this user may look at.
running_from() {
    { ls -l /proc/[0-9]*/exe 2>/dev/null || :; } | FOLDER="$1/" awk '
        { at = index($0, " -> "); split($0, part, "/proc/"); split(part[2], pid, "/") }
        at && index(substr($0, at + 4), ENVIRON["FOLDER"]) == 1 { printf "%s ", pid[1] }'
}

is_ours() { [ -L "$link" ] && [ "$(readlink "$link")" = "$target" ]; }

uninstall() {
    [ -d "$lib" ] || [ -n "$purge" ] || fail "federation is not installed in $prefix; --prefix DIR names another place"
    real=$(readlink -f "$lib" 2>/dev/null || echo "$lib")
    pids=$(running_from "$real")
    [ -z "$pids" ] || fail "a node runs from $lib (process ${pids% }): end it first with 'federation leave', or 'federation service uninstall'"
    for unit in "${XDG_CONFIG_HOME:-${HOME:-/nonexistent}/.config}/systemd/user/federation.service" /etc/systemd/system/federation.service; do
        if [ -f "$unit" ] && grep -q "$prefix/" "$unit" 2>/dev/null; then
            fail "$unit starts this program: run 'federation service uninstall' first"
        fi
    done
    made=
    [ ! -f "$lib/made" ] || made=$(cat "$lib/made")
    if is_ours; then rm -f "$link" || fail "cannot remove $link: run this as the user who installed it"; fi
    if [ -d "$lib" ]; then
        rm -rf "$lib" 2>/dev/null || fail "cannot remove $lib: run this as the user who installed it"
        say "removed $lib and $link"
    fi
    # Folders that were not there before the first install, and that are empty now; the innermost stand first.
    printf '%s\n' "$made" | while IFS= read -r folder; do
        [ -z "$folder" ] || rmdir "$folder" 2>/dev/null || :
    done
    state=${XDG_STATE_HOME:-${HOME:-}/.local/state}/federation
    config=${XDG_CONFIG_HOME:-${HOME:-}/.config}/federation
    [ -n "${HOME:-}" ] || return 0
    for folder in "$state" "$config"; do
        [ -d "$folder" ] || continue
        if [ -n "$purge" ]; then
            rm -rf "$folder" || fail "cannot remove $folder"
            rmdir "${folder%/*}" 2>/dev/null || :
            say "removed $folder"
        else
            say "left: $folder (token, identity and keys; --uninstall --purge removes them too)"
        fi
    done
    [ -z "$purge" ] || rmdir "$HOME/.local" 2>/dev/null || :
}

if [ $mode = uninstall ]; then
    uninstall
    exit 0
fi

# What this machine has.
[ "$(uname -s)" = Linux ] || fail "these archives are for Linux; on $(uname -s) install the wheel: uv tool install, see docs/install.md"
machine=$(uname -m)
for tool in tar gzip sed grep awk readlink mktemp; do
    command -v $tool >/dev/null || fail "$tool is missing: install it with this system's package manager"
done
if command -v sha256sum >/dev/null; then hash_of() { sha256sum <"$1" | cut -c1-64; }
elif command -v openssl >/dev/null; then hash_of() { openssl dgst -sha256 -r <"$1" | cut -c1-64; }
else fail "sha256sum is missing, so no archive can be checked: install coreutils"; fi
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null | sed -n 's/^glibc //p')
[ -n "$glibc" ] || glibc=$(ldd --version 2>/dev/null | sed -n '1s/.* \([0-9][0-9]*\.[0-9][0-9]*\).*/\1/p')
[ -n "$glibc" ] || fail "this system has no glibc (Alpine has musl): use the OCI image, or the wheel (docs/install.md)"
if [ -e "$link" ] || [ -L "$link" ]; then
    is_ours || fail "$link is there already and not from this script: remove it, or choose another place with --prefix"
fi

# Where the archives are.
case $from in
    '')
        case $0 in
            */install.sh | install.sh) from=$(cd "$(dirname "$0")" && pwd) ;;
            *) wrong "--from is missing: the address or folder of the archives" ;;
        esac ;;
    http://* | https://*) ;;
    file://*) from=${from#file://} ;;
    *://*) wrong "--from $from: an address begins with http:// or https://" ;;
esac
from=${from%/}
case $from in
    *.tar.gz) base=${from%/*} name=${from##*/}
        [ "$base" != "$from" ] || base=. ;;
    *) base=$from name= ;;
esac
case $base in http://* | https://*) remote=1 ;; *) remote= ;; esac
if [ -n "$remote" ]; then
    command -v curl >/dev/null || command -v wget >/dev/null ||
        fail "neither curl nor wget is here: install one, or bring the archive here and give its place: --from FILE"
fi

umask 022
made=
for folder in "$prefix/bin" "$lib" "$prefix/lib" "$prefix" "${prefix%/*}"; do
    case $folder in '' | "$lib") continue ;; esac
    [ -d "$folder" ] || made="$made$folder
"
done
new_lib=
[ -d "$lib" ] || new_lib=1
work=
clean_up() {
    [ -z "$work" ] || rm -rf "$work"
    # An install that came to nothing leaves nothing.
    if [ -n "$new_lib" ] && rmdir "$lib" 2>/dev/null; then
        printf '%s' "$made" | while IFS= read -r folder; do rmdir "$folder" 2>/dev/null || :; done
    fi
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
if ! error=$(mkdir -p "$lib" "$prefix/bin" 2>&1) || ! error=$(mktemp -d "$lib/.install.XXXXXX" 2>&1); then
    fail "cannot write to $lib (${error##*: }): choose another place with --prefix DIR, or run this as root"
fi
work=$error
# Two at once would take each other's folder away.
if command -v flock >/dev/null; then
    exec 9<"$lib"
    flock -n 9 || fail "another install or update works in $lib: wait for its end"
fi

# Puts the file PATH of the archives' place at TO; says why not in one line.
fetch() {
    if [ -z "$remote" ]; then
        [ -f "$base/$1" ] || return 1
        cp "$base/$1" "$2" 2>"$work/error"
    elif command -v curl >/dev/null; then
        if [ -t 2 ] && [ "${3:-}" = progress ]; then
            curl -fL --proto '=http,https' --retry 2 -# -o "$2" "$base/$1"
        else
            curl -fsSL --proto '=http,https' --retry 2 -o "$2" "$base/$1" 2>"$work/error"
        fi
    else
        wget -q -O "$2" "$base/$1" 2>"$work/error"
    fi
}
why() { [ ! -s "$work/error" ] || printf ' (%s)' "$(tail -n 1 "$work/error" | cut -c1-150)"; }
free_kb() { df -Pk "$lib" 2>/dev/null | awk 'END { print (NR > 1) ? $4 : "999999999" }'; }
full() { [ "$(free_kb)" -lt "${1:-64}" ]; }

# Which hashes count: those that somebody gave, or that this script has, or those of a list that is signed, or comes by TLS
# or from this machine's own disk.
list=$work/list
if [ -n "$key" ]; then
    command -v openssl >/dev/null || fail "--key needs openssl, which is missing: install it, or give the archive's --sha256 instead"
    fetch SHA256SUMS "$list" || fail "cannot get $base/SHA256SUMS$(why)"
    fetch SHA256SUMS.sig "$work/sig" || fail "$base has no SHA256SUMS.sig$(why): the list is not signed"
    [ ! -f "$key" ] || key=$(cat "$key")
    # A raw Ed25519 key is the last 32 bytes of its DER form.
    { printf '\060\052\060\005\006\003\053\145\160\003\041\000'; printf '%s' "$key" | openssl base64 -d -A; } >"$work/key.der" 2>/dev/null
    [ "$(wc -c <"$work/key.der")" -eq 44 ] || wrong "--key: 32 bytes in base64, as release.pub has them, or that file"
    openssl pkeyutl -verify -pubin -keyform DER -inkey "$work/key.der" -rawin -in "$list" -sigfile "$work/sig" >/dev/null 2>&1 ||
        fail "SHA256SUMS at $base is not signed with this key; nothing was installed"
elif [ -n "$PINNED" ]; then
    printf '%s\n' "$PINNED" >"$list"
elif [ -n "$sha256" ] && [ -n "$name" ]; then
    printf '%s  %s\n' "$sha256" "$name" >"$list"
else
    fetch SHA256SUMS "$list" ||
        fail "cannot get $base/SHA256SUMS$(why), the list of hashes; with --from ARCHIVE --sha256 HASH it is not needed"
    case $base in
        http://*) [ -n "$sha256" ] || fail "$base is not encrypted, so anybody on the way could change what comes: give the archive's --sha256, or --key, or use https" ;;
    esac
fi
if [ -z "$name" ]; then
    names=$(sed -n "s/^[0-9a-f]\{64\} [ *]\(federation-[0-9][0-9a-z.]*-linux-[0-9a-z_]*\.tar\.gz\)\$/\1/p" "$list")
    [ -n "$names" ] || fail "the list of $base names no archive"
    here=$(printf '%s\n' "$names" | grep -e "-linux-$machine\.tar\.gz\$" || :)
    [ -n "$here" ] || fail "there is no archive for $machine; there are: $(printf '%s\n' "$names" | sed 's/.*-linux-\(.*\)\.tar\.gz/\1/' | sort -u | tr '\n' ' ')"
    if [ -n "$version" ]; then
        name=$(printf '%s\n' "$here" | grep -xF "federation-$version-linux-$machine.tar.gz" || :)
        [ -n "$name" ] || fail "there is no version $version; there are: $(printf '%s\n' "$here" | sed 's/federation-\(.*\)-linux.*/\1/' | tr '\n' ' ')"
    else
        name=$(printf '%s\n' "$here" | sort -V | tail -n 1) # letters sort before the dash: 0.2.0rc1 comes before 0.2.0
    fi
fi
case $name in
    *[!0-9a-z._-]*) name='' ;;
    federation-[0-9]*-linux-?*.tar.gz) ;;
    *) name='' ;;
esac
[ -n "$name" ] || wrong "--from ${from##*/} is no archive of federation: their names are federation-VERSION-linux-ARCH.tar.gz"
version=${name#federation-}
arch=${version##*-linux-}
arch=${arch%.tar.gz}
version=${version%%-linux-*}
[ "$arch" = "$machine" ] || fail "$name is for $arch; this machine is $machine"
want=$sha256
[ -n "$want" ] || want=$(awk -v name="$name" '$2 == name || $2 == "*" name { print $1 }' "$list" | head -n 1)
[ -n "$want" ] || fail "the list of hashes has no $name; give its --sha256"

current=$(readlink "$lib/current" 2>/dev/null || :)
if [ "$current" = "$version" ] && [ "$(cat "$lib/$version/share/sha256" 2>/dev/null)" = "$want" ] && is_ours; then
    say "federation $version is installed already, in $lib/$version"
else
    say "getting $base/$name"
    fetch "$name" "$work/archive" progress || {
        if full; then fail "the disk of $lib is full"; fi
        fail "cannot get $base/$name$(why)"
    }
    got=$(hash_of "$work/archive")
    [ "$got" = "$want" ] || fail "$name has the hash $got, and should have $want: it is damaged or not ours; nothing was installed"
    need=$(($(wc -c <"$work/archive") * 4 / 1024))
    if full "$need"; then
        fail "the disk of $lib has too little room: $((need / 1024)) MB are needed, $(($(free_kb) / 1024)) MB are free"
    fi
    mkdir "$work/out"
    tar -xzof "$work/archive" -C "$work/out" 2>"$work/error" || fail "cannot unpack $name$(why); nothing was installed"
    rm -f "$work/archive"
    folder=$work/out/${name%.tar.gz}
    [ -x "$folder/federation" ] || fail "$name has no program federation in it; nothing was installed"
    needs=$(cat "$folder/share/requires-glibc" 2>/dev/null || echo 0)
    [ "$(printf '%s\n%s\n' "$needs" "$glibc" | sort -V | head -n 1)" = "$needs" ] ||
        fail "this version needs glibc $needs, and this system has $glibc: use a newer system, or the wheel with this system's Python (docs/install.md)"
    said=$("$folder/federation" version 2>"$work/error") || fail "the program does not run here$(why); is $prefix on a disk mounted noexec? nothing was installed"
    [ "$said" = "federation $version" ] || fail "the program says '$said' and not 'federation $version'; nothing was installed"
    printf '%s\n' "$want" >"$folder/share/sha256"
    case $remote$base in 1*) printf '%s\n' "$base" >"$work/source" ;; *) (cd "$base" && pwd) >"$work/source" ;; esac

    if [ -d "$lib/$version" ]; then mv "$lib/$version" "$work/old"; fi
    mv "$folder" "$lib/$version"
    # Each link is replaced in one step; whenever the machine stops, it leads to a version that works.
    point() { ln -s "$1" "$work/link" && mv -fT "$work/link" "$2"; }
    if [ -n "$current" ] && [ "$current" != "$version" ] && [ -d "$lib/$current" ]; then point "$current" "$lib/previous"; fi
    point "$version" "$lib/current"
    is_ours || point "$target" "$link"
    mv -f "$work/source" "$lib/source"
    if [ -n "$new_lib" ]; then printf '%s' "$made" >"$lib/made"; fi
    new_lib=
    say "installed federation $version in $lib/$version"
    real=$(readlink -f "$lib")
    previous=$(readlink "$lib/previous" 2>/dev/null || :)
    for folder in "$lib"/[0-9]*; do
        old=${folder##*/}
        if [ "$old" = "$version" ] || [ "$old" = "$previous" ] || [ ! -d "$folder" ]; then continue; fi
        [ -n "$(running_from "$real/$old")" ] || rm -rf "$folder"
    done
    if [ -n "$current" ] && [ "$current" != "$version" ]; then
        pids=$(running_from "$real/$current")
        [ -z "$pids" ] || say "process ${pids% } goes on with $current until it is restarted; SIGTERM lets its connections finish first"
    fi
fi

case ":${PATH:-}:" in
    *":$prefix/bin:"*)
        found=$(command -v federation || :)
        [ "$found" = "$link" ] || say "note: 'federation' in your PATH is $found; this one is $link" ;;
    *) say "$prefix/bin is not in your PATH; add it:  export PATH=\"$prefix/bin:\$PATH\"" ;;
esac
if [ $# -gt 0 ]; then
    clean_up
    trap - EXIT
    exec 9<&- || :
    exec "$link" "$@"
fi
