//! Block I/O limits: `--device-read-bps /dev/sda:1mb`, `--blkio-weight-device /dev/sda:500`.

use bollard_stubs::models::{ResourcesBlkioWeightDevice, ThrottleDevice};

use super::{OptError, Result, size};

fn path_and_value(text: &str) -> Result<(&str, &str)> {
    let (path, value) = text
        .split_once(':')
        .filter(|(path, _)| !path.is_empty())
        .ok_or_else(|| OptError::new(format!("bad format: {text}")))?;
    if !path.starts_with("/dev/") {
        return Err(OptError::new(format!("bad format for device path: {text}")));
    }
    Ok((path, value))
}

/// Bytes per second.
///
/// # Errors
/// In Docker's words.
pub fn bps(text: &str) -> Result<ThrottleDevice> {
    let (path, value) = path_and_value(text)?;
    let rate = size::parse(value).ok().filter(|rate| *rate >= 0).ok_or_else(|| {
        OptError::new(format!(
            "invalid rate for device: {text}. The correct format is <device-path>:<number>[<unit>]. \
             Number must be a positive integer. Unit is optional and can be kb, mb, or gb"
        ))
    })?;
    Ok(ThrottleDevice {
        path: Some(path.into()),
        rate: Some(rate),
    })
}

/// Operations per second.
///
/// # Errors
/// In Docker's words.
pub fn iops(text: &str) -> Result<ThrottleDevice> {
    let (path, value) = path_and_value(text)?;
    let rate: u32 = value.parse().map_err(|_| {
        OptError::new(format!(
            "invalid rate for device: {text}. The correct format is <device-path>:<number>. \
             Number must be a positive integer"
        ))
    })?;
    Ok(ThrottleDevice {
        path: Some(path.into()),
        rate: Some(i64::from(rate)),
    })
}

/// A weight, 0 or 10 to 1000.
///
/// # Errors
/// In Docker's words.
pub fn weight(text: &str) -> Result<ResourcesBlkioWeightDevice> {
    let (path, value) = path_and_value(text)?;
    let weight = value
        .parse::<usize>()
        .ok()
        .filter(|w| *w == 0 || (10..=1000).contains(w))
        .ok_or_else(|| OptError::new(format!("invalid weight for device: {text}")))?;
    Ok(ResourcesBlkioWeightDevice {
        path: Some(path.into()),
        weight: Some(weight),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        assert_eq!(bps("/dev/sda:1mb").unwrap().rate, Some(1 << 20));
        assert_eq!(iops("/dev/sda:10").unwrap().rate, Some(10));
        assert_eq!(weight("/dev/sda:500").unwrap().weight, Some(500));
        assert_eq!(bps("x").unwrap_err().0, "bad format: x");
        assert_eq!(
            iops("/x:1").unwrap_err().0,
            "bad format for device path: /x:1"
        );
        assert_eq!(
            weight("/dev/sda:5").unwrap_err().0,
            "invalid weight for device: /dev/sda:5"
        );
        assert!(bps("/dev/sda:x").is_err() && iops("/dev/sda:-1").is_err());
    }
}
