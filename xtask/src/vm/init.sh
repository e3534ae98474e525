#!/bin/busybox sh
# The guest's first process: mounts, modules, what $step says; then one line with the results, and off.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp RUST_BACKTRACE=0
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mount -t bpf bpf /sys/fs/bpf
dmesg -n 1
# By its path, as the shell has an `ip` of its own that knows less.
/bin/ip link set lo up
while read -r module; do
    insmod "/modules/$module" || echo "vm: $module cannot be inserted"
done </modules/order
echo "vm: up $(uname -r)"

failed=0
if ! reroute-agent scvm --help >/tmp/out 2>&1; then
    cat /tmp/out
    failed=$((failed + 1))
fi

# The agent as on an SCVM, and once more over what the first one left: what does `status` say of its attachments?
attachments() {
    for name in nfs0 sto0 mgt0; do
        /bin/ip link add "$name" type veth peer name "${name}_far"
        /bin/ip link set "$name" up
        /bin/ip link set "${name}_far" up
    done
    head -c 32 /dev/urandom | hexdump -v -e '1/1 "%02x"' >/cluster.key
    chmod 600 /cluster.key
    for start in first second; do
        reroute-agent scvm --config /agent.toml >/tmp/agent.log 2>&1 &
        agent=$!
        until reroute-agent status --socket /run/agent.sock --output json >/tmp/status 2>/tmp/out; do
            kill -0 $agent 2>/dev/null || break
            sleep 0.2
        done
        tr -d ' \n' </tmp/status | grep -o '{[^{}]*"egress":[^{}]*}' >/tmp/attached
        while read -r attached; do
            echo "vm: $start $attached"
        done </tmp/attached
        [ -s /tmp/attached ] || tail -n 50 /tmp/agent.log /tmp/out
        kill -9 $agent
        wait $agent 2>/dev/null
    done
}

# One by one: a test that hangs or takes the process with it is known by name.
tests() { # PROGRAM SECONDS, names from standard input
    while read -r name; do
        since=$(cut -d ' ' -f 1 /proc/uptime)
        if timeout "$2" "$1" --test-threads=1 --include-ignored --nocapture --exact "$name" >/tmp/out 2>&1 </dev/null &&
            grep -q ' 1 passed' /tmp/out; then
            state=ok
        else
            state=FAILED
            failed=$((failed + 1))
            tail -n 200 /tmp/out
        fi
        grep '^seen: ' /tmp/out | sed 's/^/vm: /'
        echo "vm: test $name $state ($since to $(cut -d ' ' -f 1 /proc/uptime) s)"
    done
}

case $step in
programs)
    attachments
    tests programs 120 </tests-programs
    ;;
nfs-client) tests kernel_client 400 </tests-nfs-client ;;
*)
    echo "vm: there is no step '$step'"
    failed=$((failed + 1))
    ;;
esac
echo "vm: result $failed failed"
poweroff -f
