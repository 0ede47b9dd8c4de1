#!/usr/bin/env bash
# Makes the base image without a registry, from Debian's packages, as small as debian:bookworm-slim.
#   base-image.sh podman [NAME]     needs root and debootstrap
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin  # has debootstrap; Debian's `su` leaves it out
engine=$1
name=${2:-localhost/debian:bookworm-slim}
"$engine" image inspect "$name" > /dev/null 2>&1 && exit 0

folder=$(mktemp -d)
# An interrupted debootstrap leaves this machine's /proc and /sys mounted there: rm must not get into them.
trap 'umount "$folder"/{proc,sys} 2> /dev/null || true; rm -rf --one-file-system "$folder" "$folder.log"' EXIT
debootstrap --variant=minbase bookworm "$folder" > "$folder.log" || { tail -n 20 "$folder.log" >&2; exit 1; }
# The image uses the same package sources as this machine, without passwords: an image shows its files to everyone.
sources=sources.list.d/debian.sources
[ -e "/etc/apt/$sources" ] || sources=sources.list
rm -f "$folder"/etc/{apt/sources.list,hostname,resolv.conf}  # debootstrap copies the last two from this machine
sed -E 's#(://)[^/@[:space:]]+@#\1#' "/etc/apt/$sources" > "$folder/etc/apt/$sources"
cmp -s "/etc/apt/$sources" "$folder/etc/apt/$sources" ||
    echo "A user name or password in /etc/apt/$sources was left out: apt in the image does not send it." >&2
# Leave out manuals and translations, also of packages that are installed later.
printf 'path-exclude=%s\n' '/usr/share/doc/*' '/usr/share/man/*' '/usr/share/locale/*' '/usr/share/info/*' \
    > "$folder/etc/dpkg/dpkg.cfg.d/slim"
# Keep apt's downloads out of the layers.
printf '%s\n' 'DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb || true"; };' \
    'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";' > "$folder/etc/apt/apt.conf.d/slim"
rm -rf "$folder"/usr/share/{doc,man,locale,info}/* "$folder"/var/lib/apt/lists/* "$folder"/var/cache/apt/archives/*.deb
tar -C "$folder" --one-file-system -c . | "$engine" import --change 'CMD ["bash"]' - "$name" > /dev/null
echo "made $name"
