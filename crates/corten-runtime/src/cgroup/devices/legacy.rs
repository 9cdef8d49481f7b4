//! A [`Filter`] in the language of the v1 devices controller: a default and exceptions to
//! it (Documentation/admin-guide/cgroup-v1/devices.rst).
//!
//! The controller allows an access only if one single exception allows all of it. So each
//! exception also gets what wider ones allow, and where two cross (all with this major
//! number, all with that minor number) what both have gets one of its own.

use super::{Devices, Filter, Kind, MKNOD, READ, Rule, WRITE};

/// A line for `devices.allow` or `devices.deny`.
pub(in crate::cgroup) type Line = (&'static str, String);

impl Filter {
    /// Lines for a new group, in order.
    pub(in crate::cgroup) fn lines(&self) -> Vec<Line> {
        let reset = file(self.allow);
        let mut lines = vec![(reset, "a".to_owned())];
        let exceptions = self.exceptions();
        lines.extend(exceptions.iter().map(|rule| (file(rule.allow), text(rule))));
        lines
    }

    /// Lines that bring a group with this `devices.list` to the filter. Nothing that is
    /// allowed before and after is denied meanwhile, unless the default becomes "denied".
    pub(in crate::cgroup) fn transition(&self, list: &str) -> Vec<Line> {
        let current: Option<Vec<Rule>> = list.lines().map(parse).collect();
        let (Some(current), false) = (current, self.allow) else {
            return self.lines(); // what the controller does not list can only be reset
        };
        let wanted = self.exceptions();
        let access = |rules: &[Rule], devices: &Devices| {
            let same = rules.iter().filter(|rule| rule.devices == *devices);
            same.fold(0, |access, rule| access | rule.access)
        };
        let mut lines = Vec::new();
        for (allow, from, to) in [(true, &current, &wanted), (false, &wanted, &current)] {
            for rule in to {
                let access = rule.access & !access(from, &rule.devices);
                if access != 0 {
                    lines.push((file(allow), text(&Rule { access, ..*rule })));
                }
            }
        }
        lines
    }

    /// systemd's `DeviceAllow=`: paths and accesses. `None` if it allows by default, or an
    /// exception has one: systemd can neither.
    pub(in crate::cgroup) fn device_allow(&self) -> Option<Vec<(String, String)>> {
        if self.allow || !self.suits_legacy() {
            return None;
        }
        let entry = |rule: &Rule| {
            let kind = match rule.devices.kind {
                Kind::Block => "block",
                Kind::Char => "char",
            };
            let path = match (rule.devices.major, rule.devices.minor) {
                (Some(major), Some(minor)) => format!("/dev/{kind}/{major}:{minor}"),
                (Some(major), None) => format!("{kind}-{major}"),
                (None, None) => format!("{kind}-*"),
                // The controller's own list will have it.
                (None, Some(_)) => return None,
            };
            let line = text(rule);
            Some((path, line.rsplit(' ').next().unwrap_or_default().to_owned()))
        };
        Some(self.exceptions().iter().filter_map(entry).collect())
    }

    fn exceptions(&self) -> Vec<Rule> {
        let mut rules = self.rules.clone();
        if self.allow {
            return rules; // any overlap with an exception denies
        }
        // Nodes are made by themselves, never together with reading or writing.
        const TOGETHER: u8 = READ | WRITE;
        for (at, a) in self.rules.iter().enumerate() {
            for b in self.rules.iter().skip(at + 1) {
                let union = (a.access | b.access) & TOGETHER;
                let crossing = a.devices.meet(&b.devices).filter(|both| {
                    *both != a.devices
                        && *both != b.devices
                        && union != a.access & TOGETHER
                        && union != b.access & TOGETHER
                });
                let Some(devices) = crossing else { continue };
                match rules.iter_mut().find(|rule| rule.devices == devices) {
                    Some(rule) => rule.access |= union,
                    None => rules.push(Rule {
                        allow: true,
                        devices,
                        access: union,
                    }),
                }
            }
        }
        let all = rules.clone();
        for rule in &mut rules {
            let wider = all
                .iter()
                .filter(|wider| wider.devices.cover(&rule.devices));
            rule.access |= TOGETHER & wider.fold(0, |access, wider| access | wider.access);
        }
        rules
    }
}

fn file(allow: bool) -> &'static str {
    if allow {
        "devices.allow"
    } else {
        "devices.deny"
    }
}

fn text(rule: &Rule) -> String {
    let number = |number: Option<u32>| number.map_or("*".to_owned(), |n| n.to_string());
    let kind = match rule.devices.kind {
        Kind::Block => 'b',
        Kind::Char => 'c',
    };
    let mut text = format!(
        "{kind} {}:{} ",
        number(rule.devices.major),
        number(rule.devices.minor)
    );
    for (bit, letter) in [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')] {
        if rule.access & bit != 0 {
            text.push(letter);
        }
    }
    text
}

/// A line of `devices.list`, unless it is the one for "everything is allowed".
fn parse(line: &str) -> Option<Rule> {
    let mut words = line.split_ascii_whitespace();
    let kind = match words.next()? {
        "b" => Kind::Block,
        "c" => Kind::Char,
        _ => return None,
    };
    let (major, minor) = words.next()?.split_once(':')?;
    let number = |text: &str| match text {
        "*" => Some(None),
        text => text.parse().ok().map(Some),
    };
    let access = words.next()?.chars().fold(0, |access, letter| {
        access
            | match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => 0,
            }
    });
    Some(Rule {
        allow: true,
        devices: Devices {
            kind,
            major: number(major)?,
            minor: number(minor)?,
        },
        access,
    })
}
