# The profile beside this file: docker's default, as Debian packages it, and io_uring, which docker refuses since 25.
# jq --indent 1 --from-file xtask/packaging/seccomp-io_uring.jq /usr/share/containers/seccomp.json >xtask/packaging/seccomp-io_uring.json
.syscalls += [{names: ["io_uring_setup", "io_uring_enter", "io_uring_register"], action: "SCMP_ACT_ALLOW"}]
| .syscalls |= map({names, action, args, includes, excludes, errnoRet} | with_entries(select(.value | IN(null, {}, []) | not)))
| {defaultAction, defaultErrnoRet, archMap, syscalls}
