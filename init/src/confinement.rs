//! What a host service may do beyond what its user may. It is root to own its files; of root's privileges it keeps those that its work
//! needs (capabilities(7)), and system calls that nobody there has a use for are refused (seccomp(2)), among them everything that makes
//! user namespaces, the way into most holes of the kernel. Children inherit both, and nothing gives them back.

use std::collections::BTreeMap;

use nix::libc;
use rustix::thread::CapabilitySet;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

/// One service's limits.
#[derive(Debug, PartialEq, Eq)]
pub struct Confinement {
    /// What it keeps.
    pub capabilities: CapabilitySet,
    /// Refused beside [`NEVER`].
    pub refused: &'static [&'static [libc::c_long]],
}

#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("drop capability {0}")]
    Capability(u32, #[source] rustix::io::Errno),
    #[error("forbid new privileges")]
    NoNewPrivileges(#[source] rustix::io::Errno),
    #[error("make the filter of system calls")]
    Compile(#[from] seccompiler::BackendError),
    #[error("install the filter of system calls")]
    Install(#[from] seccompiler::Error),
}

/// Changing what is mounted, and moving into other namespaces.
pub const MOUNTS: &[libc::c_long] = &[
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
];

/// Changing the time.
pub const CLOCK: &[libc::c_long] = &[libc::SYS_clock_settime, libc::SYS_settimeofday, libc::SYS_adjtimex, libc::SYS_clock_adjtime];

/// What no confined service needs: other kernels and modules, other processes' memory, the machine's ports, and interfaces of the kernel
/// that are large and used by nobody here.
const NEVER: &[libc::c_long] = &[
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_open_by_handle_at,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_modify_ldt,
    libc::SYS_vhangup,
];

impl Confinement {
    /// Puts the calling process under these limits, for good. It must have one thread only.
    pub fn enter(&self) -> Result<(), ConfineError> {
        for number in 0..64 {
            let Some(one) = CapabilitySet::from_bits(1 << number) else { continue };
            if self.capabilities.contains(one) {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(one) {
                // A kernel that does not know it gives it to nobody.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(ConfineError::Capability(number, error)),
            }
        }
        rustix::thread::set_no_new_privs(true).map_err(ConfineError::NoNewPrivileges)?;
        for program in self.filters()? {
            apply_filter(&program)?;
        }
        Ok(())
    }

    fn filters(&self) -> Result<[BpfProgram; 2], ConfineError> {
        // Its flags are behind a pointer, which no filter follows: C libraries that are told of no such call take the older one.
        let newer = filter([(libc::SYS_clone3, Vec::new())].into(), libc::ENOSYS)?;
        let user_namespace = libc::CLONE_NEWUSER.unsigned_abs().into();
        let with_flag = SeccompCondition::new(0, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(user_namespace), user_namespace)?;
        let mut rules = BTreeMap::new();
        for call in [libc::SYS_clone, libc::SYS_unshare] {
            rules.insert(call, vec![SeccompRule::new(vec![with_flag.clone()])?]);
        }
        for call in self.refused.iter().copied().chain([NEVER]).flatten() {
            rules.insert(*call, Vec::new());
        }
        Ok([newer, filter(rules, libc::EPERM)?])
    }
}

fn filter(rules: BTreeMap<libc::c_long, Vec<SeccompRule>>, errno: libc::c_int) -> Result<BpfProgram, ConfineError> {
    let refuse = SeccompAction::Errno(errno.unsigned_abs());
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use crate::services;

    /// Enters the limits of a service in a child of the test and tries things there.
    fn in_confinement(service: &str, words: &[&str]) -> (bool, String) {
        let test = std::env::current_exe().unwrap();
        let mut command = Command::new(test);
        command.args(["--exact", "confinement::tests::inside", "--ignored", "--nocapture", "--test-threads=1"]);
        let output = command.env("CONFINED_AS", service).env("CONFINED_RUNS", words.join(" ")).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    #[test]
    #[ignore = "the child of the other tests"]
    fn inside() {
        let (Ok(service), Ok(words)) = (std::env::var("CONFINED_AS"), std::env::var("CONFINED_RUNS")) else { return };
        let def = services::TABLE.iter().find(|def| def.name == service).unwrap();
        def.confinement.unwrap().enter().unwrap();
        let words: Vec<&str> = words.split(' ').collect();
        let status = Command::new(words[0]).args(&words[1..]).status().unwrap();
        assert!(status.success(), "{words:?}: {status}");
    }

    #[test]
    fn every_filter_can_be_made() {
        for confinement in services::TABLE.iter().filter_map(|def| def.confinement) {
            for program in confinement.filters().unwrap() {
                assert!(!program.is_empty() && program.len() < 4096);
            }
        }
    }

    #[test]
    fn a_confined_service_makes_no_user_namespace_and_mounts_nothing_that_it_need_not() {
        if !rustix::process::getuid().is_root() {
            return;
        }
        let (fine, text) = in_confinement("logd", &["grep", "-E", "^(CapBnd|NoNewPrivs|Seccomp):", "/proc/self/status"]);
        let kept = services::TABLE[0].confinement.unwrap().capabilities.bits();
        assert!(fine && text.contains(&format!("CapBnd:\t{kept:016x}")), "{text}");
        assert!(text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"), "{text}");
        for (service, words, works) in [
            ("logd", &["unshare", "--user", "true"][..], false),
            ("kubelet", &["unshare", "--user", "true"], false),
            ("logd", &["unshare", "--mount", "true"], false),
            ("kubelet", &["unshare", "--mount", "true"], true),
            ("kube-proxy", &["chroot", "/", "true"], false),
            ("machined", &["true"], true),
        ] {
            let (fine, text) = in_confinement(service, words);
            assert_eq!(fine, works, "{service}: {words:?}: {text}");
        }
    }
}
