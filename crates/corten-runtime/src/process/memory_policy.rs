//! `linux.memoryPolicy` (runtime-spec, config-linux "Memory policy"): from which memory
//! nodes a container's processes get their pages, by `set_mempolicy`.

use corten_oci::runtime_spec::{LinuxMemoryPolicy, MemoryPolicyFlagType, MemoryPolicyModeType};

use crate::error::{RuntimeError, Step};
use crate::{number_list, sys};

/// The arguments of the system call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct MemoryPolicy {
    mode: u32,
    nodes: Vec<u64>,
}

impl MemoryPolicy {
    pub(super) fn plan(policy: &LinuxMemoryPolicy) -> Result<Self, RuntimeError> {
        use MemoryPolicyModeType as M;
        let mode = policy.mode();
        let list = policy.nodes().as_deref().unwrap_or_default();
        let mut nodes = Vec::new();
        if !list.is_empty() {
            let numbers = number_list::parse(list).ok_or_else(|| {
                let reason = format!("{list:?} is not a list such as 0-3,7");
                RuntimeError::spec("linux.memoryPolicy.nodes", reason)
            })?;
            for number in numbers {
                let word = usize::from(number / 64);
                nodes.resize(nodes.len().max(word + 1), 0);
                if let Some(word) = nodes.get_mut(word) {
                    *word |= 1u64 << (number % 64);
                }
            }
        }
        let reason = match mode {
            M::MpolDefault | M::MpolLocal if !nodes.is_empty() => "must be absent for this mode",
            M::MpolBind | M::MpolInterleave | M::MpolWeightedInterleave | M::MpolPreferredMany
                if nodes.is_empty() =>
            {
                "must name a node for this mode"
            }
            _ => "",
        };
        if !reason.is_empty() {
            return Err(RuntimeError::spec("linux.memoryPolicy.nodes", reason));
        }
        let number = match mode {
            M::MpolDefault => 0,
            M::MpolPreferred => 1,
            M::MpolBind => 2,
            M::MpolInterleave => 3,
            M::MpolLocal => 4,
            M::MpolPreferredMany => 5,
            M::MpolWeightedInterleave => 6,
        };
        let flags = policy.flags().iter().flatten();
        let mode = flags.fold(number, |mode, flag| mode | bit(*flag));
        Ok(Self { mode, nodes })
    }

    /// Child.
    pub(super) fn apply(&self) -> Result<(), RuntimeError> {
        sys::set_mempolicy(self.mode, &self.nodes)
            .map_err(|errno| RuntimeError::setup(Step::Scheduler, "linux.memoryPolicy", errno))
    }
}

/// `linux/mempolicy.h`.
fn bit(flag: MemoryPolicyFlagType) -> u32 {
    match flag {
        MemoryPolicyFlagType::MpolFNumaBalancing => 1 << 13,
        MemoryPolicyFlagType::MpolFRelativeNodes => 1 << 14,
        MemoryPolicyFlagType::MpolFStaticNodes => 1 << 15,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(json: serde_json::Value) -> Result<MemoryPolicy, String> {
        let policy: LinuxMemoryPolicy = serde_json::from_value(json).unwrap();
        MemoryPolicy::plan(&policy).map_err(|error| error.to_string())
    }

    #[test]
    fn numbers() {
        let policy = planned(serde_json::json!({
            "mode": "MPOL_INTERLEAVE", "nodes": "2-3,64", "flags": ["MPOL_F_STATIC_NODES"]
        }));
        assert_eq!(
            policy.unwrap(),
            MemoryPolicy {
                mode: 3 | 1 << 15,
                nodes: vec![0b1100, 1]
            }
        );
        let policy = planned(serde_json::json!({"mode": "MPOL_DEFAULT"})).unwrap();
        assert_eq!((policy.mode, policy.nodes.len()), (0, 0));
    }

    #[test]
    fn refusals() {
        for json in [
            serde_json::json!({"mode": "MPOL_DEFAULT", "nodes": "0"}),
            serde_json::json!({"mode": "MPOL_BIND"}),
            serde_json::json!({"mode": "MPOL_BIND", "nodes": "x"}),
        ] {
            assert!(
                planned(json)
                    .unwrap_err()
                    .contains("linux.memoryPolicy.nodes")
            );
        }
    }
}
