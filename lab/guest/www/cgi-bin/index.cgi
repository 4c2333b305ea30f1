#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Copyright The cxm for OpenNebula authors
#
# The status page, one line.
word() {
    value=
    [ ! -e "$2" ] || read -r value <"$2" || :
    line="$line $1=$value"
}
line=
word boot /proc/sys/kernel/random/boot_id
word count /run/count
word boots /var/lib/boots
word kind /sys/hypervisor/guest_type
word kernel /proc/sys/kernel/osrelease
word name /proc/sys/kernel/hostname
word note /var/lib/note
printf 'Content-Type: text/plain\r\n\r\n%s\n' "${line# }"
