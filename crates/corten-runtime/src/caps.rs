//! Capabilities: the runtime-spec's names as kernel bit masks, and applying the five
//! sets to the calling process (capabilities(7)).

use corten_oci::runtime_spec::{Capabilities, Capability, LinuxCapabilities};
use rustix::io::Errno;

use crate::sys;

/// Every capability and its number in `linux/capability.h`.
#[rustfmt::skip]
pub(crate) const ALL: &[(Capability, u8)] = &[
    (Capability::Chown, 0), (Capability::DacOverride, 1), (Capability::DacReadSearch, 2),
    (Capability::Fowner, 3), (Capability::Fsetid, 4), (Capability::Kill, 5),
    (Capability::Setgid, 6), (Capability::Setuid, 7), (Capability::Setpcap, 8),
    (Capability::LinuxImmutable, 9), (Capability::NetBindService, 10),
    (Capability::NetBroadcast, 11), (Capability::NetAdmin, 12), (Capability::NetRaw, 13),
    (Capability::IpcLock, 14), (Capability::IpcOwner, 15), (Capability::SysModule, 16),
    (Capability::SysRawio, 17), (Capability::SysChroot, 18), (Capability::SysPtrace, 19),
    (Capability::SysPacct, 20), (Capability::SysAdmin, 21), (Capability::SysBoot, 22),
    (Capability::SysNice, 23), (Capability::SysResource, 24), (Capability::SysTime, 25),
    (Capability::SysTtyConfig, 26), (Capability::Mknod, 27), (Capability::Lease, 28),
    (Capability::AuditWrite, 29), (Capability::AuditControl, 30), (Capability::Setfcap, 31),
    (Capability::MacOverride, 32), (Capability::MacAdmin, 33), (Capability::Syslog, 34),
    (Capability::WakeAlarm, 35), (Capability::BlockSuspend, 36), (Capability::AuditRead, 37),
    (Capability::Perfmon, 38), (Capability::Bpf, 39), (Capability::CheckpointRestore, 40),
];

/// The five sets as bit masks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct CapSets {
    pub(crate) bounding: u64,
    pub(crate) effective: u64,
    pub(crate) permitted: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
}

impl CapSets {
    /// The masks of the spec's sets.
    pub(crate) fn from_spec(sets: &LinuxCapabilities) -> Self {
        Self {
            bounding: mask(sets.bounding().as_ref()),
            effective: mask(sets.effective().as_ref()),
            permitted: mask(sets.permitted().as_ref()),
            inheritable: mask(sets.inheritable().as_ref()),
            ambient: mask(sets.ambient().as_ref()),
        }
    }

    /// Cuts all sets down to what the calling process itself can give: a capability this
    /// host (or this process) does not have is left out, as runc and Docker do with a
    /// warning, because a container must also start where its engine is restricted. Of those
    /// in `told` the warning has been given.
    pub(crate) fn restrict_to(mut self, available: u64, told: Option<&LinuxCapabilities>) -> Self {
        let asked = self;
        self.bounding &= available;
        self.permitted &= available;
        self.effective &= self.permitted;
        self.inheritable &= available;
        self.ambient &= self.permitted & self.inheritable;
        let mut lost = self.lost_from(asked);
        if let Some(told) = told.filter(|_| lost != 0) {
            lost &= !Self::from_spec(told).all();
        }
        if lost != 0 {
            let known = ALL.iter().filter(|(_, number)| lost & (1 << number) != 0);
            let names: Vec<String> = known.map(|(name, _)| format!("CAP_{name}")).collect();
            tracing::warn!(?names, "leaving out capabilities that cannot be given");
        }
        self
    }

    /// What is in at least one set.
    fn all(self) -> u64 {
        self.bounding | self.effective | self.permitted | self.inheritable | self.ambient
    }

    /// What at least one set has less than `asked`.
    fn lost_from(self, asked: Self) -> u64 {
        asked.bounding & !self.bounding
            | asked.permitted & !self.permitted
            | asked.effective & !self.effective
            | asked.inheritable & !self.inheritable
            | asked.ambient & !self.ambient
    }

    /// Drops everything outside the bounding set. Must come before the change of user:
    /// it needs `CAP_SETPCAP`.
    pub(crate) fn apply_bounding(&self, last: u8) -> Result<(), Errno> {
        for number in 0..=last {
            if self.bounding & (1 << number) == 0 {
                sys::prctl(libc::PR_CAPBSET_DROP, u64::from(number), 0)?;
            }
        }
        Ok(())
    }

    /// Sets effective, permitted, inheritable and then the ambient set. Comes after the
    /// change of user (with `PR_SET_KEEPCAPS` across it).
    pub(crate) fn apply(&self) -> Result<(), Errno> {
        sys::capset(self.effective, self.permitted, self.inheritable)?;
        // Changing the inheritable set or the user may have left ambient bits behind.
        match sys::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL as u64,
            0,
        ) {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno),
        }
        for number in 0..64u64 {
            if self.ambient & (1 << number) != 0 {
                sys::prctl(
                    libc::PR_CAP_AMBIENT,
                    libc::PR_CAP_AMBIENT_RAISE as u64,
                    number,
                )?;
            }
        }
        Ok(())
    }
}

fn mask(set: Option<&Capabilities>) -> u64 {
    let Some(set) = set else { return 0 };
    ALL.iter()
        .filter(|(capability, _)| set.contains(capability))
        .fold(0, |mask, (_, number)| mask | 1 << number)
}

/// The highest capability number of the running kernel.
pub(crate) fn last_capability() -> u8 {
    // One small read; probing with prctl would take forty calls.
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(40)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        let caps: Capabilities = [Capability::Chown, Capability::CheckpointRestore]
            .into_iter()
            .collect();
        assert_eq!(mask(Some(&caps)), 1 | 1 << 40);
        assert_eq!(mask(None), 0);
        assert_eq!(
            mask(Some(&crate::defaults::all_capabilities())),
            (1 << 41) - 1
        );
    }

    #[test]
    fn restriction_keeps_the_sets_consistent() {
        let all = u64::MAX;
        let sets = CapSets {
            bounding: all,
            effective: all,
            permitted: 0b1110,
            inheritable: 0b0111,
            ambient: all,
        };
        let cut = sets.restrict_to(0b0110, None);
        assert_eq!(cut.lost_from(sets), !0b0110);
        assert_eq!(cut.restrict_to(all, None).lost_from(cut), 0);
        assert_eq!(
            cut,
            CapSets {
                bounding: 0b0110,
                effective: 0b0110,
                permitted: 0b0110,
                inheritable: 0b0110,
                ambient: 0b0110
            }
        );
    }
}
