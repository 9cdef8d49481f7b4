//! What can only be settled once the layers below are known, and how it is written down: JSON
//! in the layer's row. Names are bytes; one that is no UTF-8 is written in hexadecimal.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// What can only be settled once the layers below are known.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Stored", try_from = "Stored")]
pub(super) struct Pending {
    /// Directories made because something is in them.
    pub(super) implied: BTreeSet<PathBuf>,
    /// Hard links (name, target) to files of layers below.
    pub(super) links: Vec<(PathBuf, PathBuf)>,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.implied.is_empty() && self.links.is_empty()
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    implied: Vec<Name>,
    links: Vec<(Name, Name)>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Name {
    Text(String),
    Bytes { hex: String },
}

impl From<PathBuf> for Name {
    fn from(path: PathBuf) -> Self {
        match path.into_os_string().into_string() {
            Ok(text) => Self::Text(text),
            Err(bytes) => Self::Bytes {
                hex: hex::encode(bytes.as_bytes()),
            },
        }
    }
}

impl TryFrom<Name> for PathBuf {
    type Error = hex::FromHexError;

    fn try_from(name: Name) -> Result<Self, Self::Error> {
        Ok(match name {
            Name::Text(text) => text.into(),
            Name::Bytes { hex } => OsString::from_vec(hex::decode(hex)?).into(),
        })
    }
}

impl From<Pending> for Stored {
    fn from(pending: Pending) -> Self {
        let links = pending.links.into_iter();
        Self {
            implied: pending.implied.into_iter().map(Name::from).collect(),
            links: links.map(|(name, to)| (name.into(), to.into())).collect(),
        }
    }
}

impl TryFrom<Stored> for Pending {
    type Error = hex::FromHexError;

    fn try_from(stored: Stored) -> Result<Self, Self::Error> {
        let implied = stored.implied.into_iter().map(PathBuf::try_from);
        let links = stored.links.into_iter();
        let links = links.map(|(name, to)| Ok((name.try_into()?, to.try_into()?)));
        Ok(Self {
            implied: implied.collect::<Result<_, _>>()?,
            links: links.collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_bytes_and_old_records_are_read() {
        let odd = PathBuf::from(OsString::from_vec(b"caf\xe9/x".to_vec()));
        let pending = Pending {
            implied: [odd.clone(), "plain".into()].into(),
            links: vec![("l".into(), odd)],
        };
        let text = serde_json::to_string(&pending).unwrap();
        assert_eq!(
            text,
            r#"{"implied":[{"hex":"636166e92f78"},"plain"],"links":[["l",{"hex":"636166e92f78"}]]}"#
        );
        assert_eq!(serde_json::from_str::<Pending>(&text).unwrap(), pending);
        let old: Pending =
            serde_json::from_str(r#"{"implied":["a/b"],"links":[["c","d"]]}"#).unwrap();
        assert_eq!(old.links, [("c".into(), "d".into())]);
        assert!(
            serde_json::from_str::<Pending>(r#"{"implied":[{"hex":"x"}],"links":[]}"#).is_err()
        );
    }
}
