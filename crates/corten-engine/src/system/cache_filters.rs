//! Which records of the build cache `filters` choose: for `POST /build/prune`, and for
//! `GET /system/df`, where they are Corten's own.

use corten_build::{CacheRecord, RecordKind};

use super::df::kind;
use crate::Filters;
use crate::error::EngineError;
use crate::parse::filters;

type Result<T> = std::result::Result<T, EngineError>;

const FILTERS: &[&str] = &[
    "until",
    "id",
    "parent",
    "type",
    "description",
    "inuse",
    "shared",
    "private",
    "mutable",
    "immutable",
    "unused-for",
];

const FLAGS: [&str; 5] = ["inuse", "shared", "private", "mutable", "immutable"];

/// Filters that have been understood.
pub(super) struct Chosen<'a> {
    wanted: &'a Filters,
    /// Not used since then.
    until: Option<i64>,
    flags: Vec<(&'static str, bool)>,
}

impl<'a> Chosen<'a> {
    pub(super) fn by(wanted: &'a Filters) -> Result<Self> {
        filters::check(wanted, FILTERS)?;
        // The names that `until` had, and has.
        let mut timed = wanted.clone();
        if let Some(values) = timed.remove("unused-for") {
            timed.entry("until".to_owned()).or_default().extend(values);
        }
        let mut flags = Vec::new();
        for field in FLAGS {
            if let Some(wish) = presence(wanted, field)? {
                flags.push((field, wish));
            }
        }
        Ok(Self {
            wanted,
            until: filters::until(&timed, jiff::Timestamp::now())?,
            flags,
        })
    }

    pub(super) fn takes(&self, record: &CacheRecord) -> bool {
        let is = |field: &str| match field {
            "inuse" => record.in_use,
            "shared" => record.shared,
            "private" => !record.shared,
            "mutable" => record.kind == RecordKind::CacheMount,
            _ => record.kind != RecordKind::CacheMount,
        };
        self.until.is_none_or(|until| record.last_used < until)
            && matches(self.wanted, record)
            && self.flags.iter().all(|(field, wish)| is(field) == *wish)
    }
}

/// A field that says yes by being there (`inuse`), or has a boolean.
fn presence(wanted: &Filters, field: &str) -> Result<Option<bool>> {
    match filters::values(wanted, field) {
        [value] if value.is_empty() => Ok(Some(true)),
        _ => filters::flag(wanted, field),
    }
}

fn matches(wanted: &Filters, record: &CacheRecord) -> bool {
    filters::any(wanted, "id", |id| record.id.starts_with(id.as_str()))
        // Records here are keyed by all that went in; none names a parent.
        && filters::values(wanted, "parent").is_empty()
        && filters::any(wanted, "type", |text| *text == kind(record.kind).to_string())
        && filters::any(wanted, "description", |text| {
            record.description.contains(text.as_str())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_choose() {
        let record = CacheRecord {
            id: "abc".to_owned(),
            kind: RecordKind::Step,
            description: "[2/3] RUN make".to_owned(),
            size: 1,
            shared: false,
            in_use: false,
            created: 0,
            last_used: 1_700_000_000_000_000_000,
            uses: 0,
        };
        let takes = |fields: &[(&str, &str)]| {
            let mut wanted = Filters::default();
            for (field, value) in fields {
                let values = wanted.entry((*field).to_owned()).or_default();
                values.push((*value).to_owned());
            }
            Chosen::by(&wanted).map(|chosen| chosen.takes(&record))
        };
        for (fields, expected) in [
            (&[][..], true),
            (&[("id", "ab")], true),
            (&[("id", "b")], false),
            // Of one field any value, of several fields all.
            (&[("id", "b"), ("id", "a")], true),
            (&[("id", "a"), ("type", "exec.cachemount")], false),
            (&[("type", "regular")], true),
            (&[("description", "make")], true),
            (&[("inuse", "")], false),
            (&[("inuse", "0")], true),
            (&[("private", "")], true),
            (&[("shared", "1")], false),
            (&[("mutable", "")], false),
            (&[("immutable", "true")], true),
            (&[("parent", "x")], false),
            (&[("until", "2026-01-02T00:00:00Z")], true),
            (&[("until", "2020-01-01T00:00:00Z")], false),
            (&[("unused-for", "1h30m")], true),
        ] {
            assert_eq!(takes(fields).unwrap(), expected, "{fields:?}");
        }
        for wrong in [("color", "red"), ("inuse", "x"), ("until", "soon")] {
            assert!(takes(&[wrong]).is_err(), "{wrong:?}");
        }
    }
}
