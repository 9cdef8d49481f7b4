//! Limits of block I/O: weights, and rates of single devices.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use bollard_stubs::models::{HostConfig, ResourcesBlkioWeightDevice, ThrottleDevice};
use corten_oci::runtime_spec::{
    LinuxBlockIo, LinuxBlockIoBuilder, LinuxThrottleDevice, LinuxThrottleDeviceBuilder,
    LinuxWeightDevice, LinuxWeightDeviceBuilder,
};

use super::{bad, devices};
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// What weights go from and to (Docker's, which are v1's).
const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

/// Drops weights where no scheduler of this kernel knows them.
pub(super) fn discard_unknown(host: &mut HostConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    if weighs(Path::new("/sys/fs/cgroup")) {
        return warnings;
    }
    if host.blkio_weight.is_some_and(|weight| weight != 0) {
        host.blkio_weight = None;
        warnings.push(
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight \
             discarded."
                .to_owned(),
        );
    }
    if host
        .blkio_weight_device
        .as_ref()
        .is_some_and(|list| !list.is_empty())
    {
        host.blkio_weight_device = None;
        warnings.push(
            "Your kernel does not support Block I/O weight_device or the cgroup is not mounted. \
             Weight-device discarded."
                .to_owned(),
        );
    }
    warnings
}

/// Whether a scheduler weighs groups. BFQ has no weight for the root group, but counts there; on
/// the unified hierarchy the root tells nothing, and a group without weights refuses them later.
fn weighs(groups: &Path) -> bool {
    if groups.join("cgroup.controllers").exists() {
        return std::fs::read_to_string(groups.join("cgroup.controllers"))
            .is_ok_and(|all| all.split_whitespace().any(|name| name == "io"));
    }
    ["blkio.weight", "blkio.bfq.io_service_bytes"]
        .iter()
        .any(|file| groups.join("blkio").join(file).exists())
}

/// What is asked for, if anything is.
pub(crate) fn limits(host: &HostConfig) -> Result<Option<LinuxBlockIo>> {
    let mut built = LinuxBlockIoBuilder::default();
    let mut any = false;
    if let Some(weight) = host.blkio_weight.filter(|weight| *weight != 0) {
        if !WEIGHTS.contains(&weight) {
            return Err(bad("Range of blkio weight is from 10 to 1000"));
        }
        built = built.weight(weight);
        any = true;
    }
    let weights = weights(host.blkio_weight_device.as_deref().unwrap_or_default())?;
    if !weights.is_empty() {
        built = built.weight_device(weights);
        any = true;
    }
    let rates = |list: &Option<Vec<ThrottleDevice>>| rates(list.as_deref().unwrap_or_default());
    let read_bps = rates(&host.blkio_device_read_bps)?;
    let write_bps = rates(&host.blkio_device_write_bps)?;
    let read_iops = rates(&host.blkio_device_read_iops)?;
    let write_iops = rates(&host.blkio_device_write_iops)?;
    any |= [&read_bps, &write_bps, &read_iops, &write_iops]
        .iter()
        .any(|rates| !rates.is_empty());
    if !any {
        return Ok(None);
    }
    built = built
        .throttle_read_bps_device(read_bps)
        .throttle_write_bps_device(write_bps)
        .throttle_read_iops_device(read_iops)
        .throttle_write_iops_device(write_iops);
    Ok(built.build().ok())
}

fn weights(list: &[ResourcesBlkioWeightDevice]) -> Result<Vec<LinuxWeightDevice>> {
    let weight = |device: &ResourcesBlkioWeightDevice| {
        let path = device.path.as_deref().unwrap_or_default();
        let weight = device.weight.and_then(|weight| u16::try_from(weight).ok());
        let weight = weight
            .filter(|weight| *weight == 0 || WEIGHTS.contains(weight))
            .ok_or_else(|| bad(format!("Range of blkio weight is from 10 to 1000: {path}")))?;
        let (major, minor) = numbers(path)?;
        LinuxWeightDeviceBuilder::default()
            .major(major)
            .minor(minor)
            .weight(weight)
            .build()
            .map_err(|error| bad(format!("blkio weight of {path}: {error}")))
    };
    list.iter().map(weight).collect()
}

fn rates(list: &[ThrottleDevice]) -> Result<Vec<LinuxThrottleDevice>> {
    let rate = |device: &ThrottleDevice| {
        let path = device.path.as_deref().unwrap_or_default();
        let rate = u64::try_from(device.rate.unwrap_or_default())
            .map_err(|_| bad(format!("invalid rate for device: {path}")))?;
        let (major, minor) = numbers(path)?;
        LinuxThrottleDeviceBuilder::default()
            .major(major)
            .minor(minor)
            .rate(rate)
            .build()
            .map_err(|error| bad(format!("I/O rate of {path}: {error}")))
    };
    list.iter().map(rate).collect()
}

/// The numbers of a block device.
fn numbers(path: &str) -> Result<(i64, i64)> {
    let meta = std::fs::metadata(path)
        .map_err(|error| bad(format!("block I/O limit of device \"{path}\": {error}")))?;
    if !meta.file_type().is_block_device() {
        return Err(bad(format!(
            "block I/O limit of device \"{path}\": not a block device"
        )));
    }
    Ok(devices::numbers(meta.rdev()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_need_a_scheduler() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        assert!(!weighs(dir.path()));
        file("blkio/blkio.throttle.io_serviced", "");
        assert!(!weighs(dir.path()));
        file("blkio/blkio.bfq.io_service_bytes", "");
        assert!(weighs(dir.path()));
        file("cgroup.controllers", "cpu memory\n");
        assert!(!weighs(dir.path()));
        file("cgroup.controllers", "cpu io memory\n");
        assert!(weighs(dir.path()));
    }

    #[test]
    fn weights_and_devices_are_checked() {
        assert_eq!(limits(&HostConfig::default()).unwrap(), None);
        let weight = |weight| {
            limits(&HostConfig {
                blkio_weight: Some(weight),
                ..HostConfig::default()
            })
        };
        assert_eq!(weight(500).unwrap().unwrap().weight(), Some(500));
        assert_eq!(weight(0).unwrap(), None);
        assert!(weight(5).is_err() && weight(1001).is_err());
        for (path, reason) in [("/dev/null", "not a block device"), ("/no", "No such file")] {
            let error = limits(&HostConfig {
                blkio_device_read_bps: Some(vec![ThrottleDevice {
                    path: Some(path.to_owned()),
                    rate: Some(1),
                }]),
                ..HostConfig::default()
            })
            .unwrap_err();
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}
