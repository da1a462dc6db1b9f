#!/usr/bin/env bash
# usage: unpack.sh DEST
#
# Unpacks the streams that are complete in the available parts into DEST. Parts next to this script are copied into
# DEST, so a later run needs only the new parts. Every part and every unpacked file is checked by SHA-256. Files that
# are already complete are left unchanged.
#
# Needs bash, coreutils, and xz or python3. `cargo xtask gpu-kit` makes the kit. Its manifest.json has one object per
# line, which the patterns below rely on.
set -u
export LC_ALL=C

fail() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

digest() {
  local line
  line=$(sha256sum <"$1") && printf '%s' "${line%% *}"
}

decode() {
  if command -v xz >/dev/null; then
    xz -dc
  else
    python3 -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.stdin.buffer), sys.stdout.buffer, 1 << 20)'
  fi
}

[[ $# == 1 && -n $1 ]] || fail 'usage: unpack.sh DEST'
kit=$(cd "$(dirname "$0")" && pwd) || fail 'the folder of unpack.sh cannot be entered'
dest=$1
parts=$dest/.parts
began=$(date +%s%N)
command -v xz >/dev/null || command -v python3 >/dev/null || fail 'xz or python3 is needed'
[[ -f $kit/manifest.json ]] || fail 'manifest.json is missing: bring it along with unpack.sh'
mkdir -p "$parts" || fail "$dest cannot be made"

part_names=() part_bytes=() part_sums=() stream_starts=() stream_bytes=()
file_names=() file_streams=() file_starts=() file_bytes=() file_sums=()
part_row='^\{"part":"([^"]+)","bytes":([0-9]+),"sha256":"([0-9a-f]{64})"\},?$'
stream_row='^\{"stream":([0-9]+),"start":([0-9]+),"bytes":([0-9]+)\},?$'
file_row='^\{"file":"([^"]+)","stream":([0-9]+),"start":([0-9]+),"bytes":([0-9]+),"sha256":"([0-9a-f]{64})"\},?$'
while IFS= read -r line; do
  if [[ $line =~ $part_row ]]; then
    part_names+=("${BASH_REMATCH[1]}") part_bytes+=("${BASH_REMATCH[2]}") part_sums+=("${BASH_REMATCH[3]}")
  elif [[ $line =~ $stream_row ]]; then
    stream_starts+=("${BASH_REMATCH[2]}") stream_bytes+=("${BASH_REMATCH[3]}")
  elif [[ $line =~ $file_row ]]; then
    file_names+=("${BASH_REMATCH[1]}") file_streams+=("${BASH_REMATCH[2]}") file_starts+=("${BASH_REMATCH[3]}")
    file_bytes+=("${BASH_REMATCH[4]}") file_sums+=("${BASH_REMATCH[5]}")
  fi
done <"$kit/manifest.json"
((${#part_names[@]} > 0 && ${#file_names[@]} > 0)) || fail 'manifest.json lists nothing: bring it along again'

# Available parts: those next to this script are checked and copied into DEST, others are taken from DEST.
at_hand=() missing='' brought=''
for i in "${!part_names[@]}"; do
  name=${part_names[i]} sum=${part_sums[i]}
  if [[ -f $kit/$name ]]; then
    [[ $(digest "$kit/$name") == "$sum" ]] || fail "$name does not match manifest.json: bring both along again"
    if [[ ! -f $parts/$name || $(digest "$parts/$name") != "$sum" ]]; then
      cp "$kit/$name" "$parts/$name.partial" && mv "$parts/$name.partial" "$parts/$name" || fail "$name cannot be stored in $dest"
    fi
    brought=$name
  elif [[ -f $parts/$name ]]; then
    [[ $(digest "$parts/$name") == "$sum" ]] || fail "$name in $dest is not of this kit: run the command that brings $name again"
  else
    missing=${missing:-$name}
    continue
  fi
  if [[ -n $missing ]]; then
    [[ $missing == "${part_names[0]}" ]] && fail "$missing is missing: run the first command again"
    fail "$missing is missing: run the command that brings it"
  fi
  at_hand+=("$parts/$name")
done
# An early run has only the first parts. While parts are missing, a run must bring the last available part.
[[ -n $missing && $brought != "${part_names[${#at_hand[@]} - 1]}" ]] && fail "$missing is missing: bring it along"
reach=0
for ((i = 0; i < ${#at_hand[@]}; i++)); do ((reach += part_bytes[i])); done

# Checks the digest of file $2, and moves it to the path of file number $1.
place() {
  local name=${file_names[$1]} from=$2
  [[ $(digest "$from") == "${file_sums[$1]}" ]] || fail "$name: the unpacked bytes do not match manifest.json"
  [[ $name != bin/* ]] || chmod 755 "$from"
  mkdir -p "$(dirname "$dest/$name")" && mv "$from" "$dest/$name" || fail "$name cannot be written"
  printf '%12d bytes  %s\n' "${file_bytes[$1]}" "$name"
}

# Unpacks stream $1. The other arguments are the numbers of its files.
unpack() {
  local stream=$1 content=$parts/stream-$1 i
  shift
  cat "${at_hand[@]}" | tail -c "+$((stream_starts[stream] + 1))" | head -c "${stream_bytes[stream]}" | decode >"$content"
  [[ ${PIPESTATUS[3]} == 0 ]] || fail "${file_names[$1]} cannot be unpacked: is there room in $dest?"
  if (($# == 1)); then
    place "$1" "$content"
    return
  fi
  for i in "$@"; do
    tail -c "+$((file_starts[i] + 1))" "$content" | head -c "${file_bytes[i]}" >"$content.file"
    place "$i" "$content.file"
  done
  rm "$content"
}

waiting=0 whole=0 total=0 jobs=()
for stream in "${!stream_starts[@]}"; do
  members=() there=1
  for i in "${!file_names[@]}"; do
    ((file_streams[i] == stream)) && members+=("$i")
  done
  if ((stream_starts[stream] + stream_bytes[stream] > reach)); then
    ((waiting += ${#members[@]}))
    continue
  fi
  for i in "${members[@]}"; do
    ((whole += 1, total += file_bytes[i]))
    [[ $there == 1 && -f $dest/${file_names[i]} && $(digest "$dest/${file_names[i]}") == "${file_sums[i]}" ]] || there=0
  done
  if [[ $there == 0 ]]; then
    unpack "$stream" "${members[@]}" &
    jobs+=($!)
  fi
done
failed=0
for job in ${jobs[@]+"${jobs[@]}"}; do wait "$job" || failed=1; done
[[ $failed == 0 ]] || exit 1
cp "$kit/manifest.json" "$dest/manifest.json" || fail "manifest.json cannot be stored in $dest"
took=$((($(date +%s%N) - began) / 1000000))
[[ ${#jobs[@]} == 0 ]] || printf '%s %d.%03d\n' "$brought" $((took / 1000)) $((took % 1000)) >>"$dest/unpacked.txt"
printf '%d files of %d bytes are in %s; %d.%03d s\n' "$whole" "$total" "$dest" $((took / 1000)) $((took % 1000))
((waiting == 0)) || printf '%d files wait for %s\n' "$waiting" "$missing"
