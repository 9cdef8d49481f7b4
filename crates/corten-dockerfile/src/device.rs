//! `RUN --device`.

use crate::mount::{boolean, fields};
use crate::parse::suggest;

/// A device that a RUN asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// `vendor.com/class=name`, `vendor.com/class` or a class of BuildKit's.
    pub name: String,
    /// Without it the step fails.
    pub required: bool,
}

impl Device {
    /// Reads the value of the flag.
    ///
    /// # Errors
    /// It is not understood.
    pub fn parse(flag: &str) -> Result<Self, String> {
        let (mut name, mut required) = (None, false);
        for field in fields(flag)? {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.to_lowercase(), Some(value)),
                None => (field.to_lowercase(), None),
            };
            match (key.as_str(), value) {
                ("required", value) => required = boolean("required", value)?,
                ("name", Some(value)) => match &name {
                    None => name = Some(value.to_owned()),
                    Some(name) => return Err(format!("device name already set to {name}")),
                },
                _ if name.is_none() => name = Some(field),
                (_, None) => {
                    return Err(format!("invalid field '{field}' must be a key=value pair"));
                }
                (key, Some(_)) => {
                    let hint = suggest(key, &["name", "required"]);
                    let hint =
                        hint.map_or_else(String::new, |known| format!(" (did you mean {known}?)"));
                    return Err(format!("unexpected key '{key}' in '{field}'{hint}"));
                }
            }
        }
        match name.filter(|name| !name.is_empty()) {
            Some(name) => Ok(Self { name, required }),
            None => Err("a device has no name".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_needs() {
        for (flag, name, required) in [
            ("vendor1.com/device=foo", "vendor1.com/device=foo", false),
            ("class1,required", "class1", true),
            ("required=true,name=v.com/k", "v.com/k", true),
            ("v.com/k=*,required=false", "v.com/k=*", false),
        ] {
            let device = Device::parse(flag).unwrap();
            assert_eq!(
                (device.name.as_str(), device.required),
                (name, required),
                "{flag}"
            );
        }
        for (flag, why) in [
            ("a,name=b", "device name already set to a"),
            ("a,b", "must be a key=value pair"),
            (
                "a,requird=1",
                "unexpected key 'requird' in 'requird=1' (did you mean required?)",
            ),
            ("a,required=x", "invalid value for required: x"),
            ("required", "a device has no name"),
        ] {
            let error = Device::parse(flag).unwrap_err();
            assert!(error.contains(why), "{flag}: {error}");
        }
    }
}
