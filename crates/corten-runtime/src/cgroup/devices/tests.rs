//! The filter against three interpreters written from the documents: of the rules as the
//! runtime-spec has them, of eBPF, and of the v1 controller.

use proptest::prelude::*;

use super::ebpf::{AND_K, EXIT, JA, JEQ, JNE, JSET, LOAD_WORD, MOV, MOV_K, RSH_K};
use super::*;
use crate::sys::BpfInsn;

fn rule(
    allow: bool,
    typ: Option<LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow)
        .set_typ(typ)
        .set_major(major)
        .set_minor(minor)
        .set_access(Some(access.into()));
    rule
}

const CHAR: Option<LinuxDeviceType> = Some(LinuxDeviceType::C);

fn lines(rules: &[LinuxDeviceCgroup]) -> Vec<(&'static str, String)> {
    Filter::new(rules).unwrap().lines()
}

#[test]
fn lines_of_the_default() {
    let lines = lines(&crate::defaults::devices());
    assert_eq!(lines[0], ("devices.deny", "a".into()));
    assert!(lines.contains(&("devices.allow", "c 1:3 rwm".into())));
    assert!(lines.contains(&("devices.allow", "c *:* m".into())));
    assert!(lines.contains(&("devices.allow", "c 136:* rwm".into())));
    assert!(!lines.iter().any(|(_, rule)| rule.starts_with("c 10:229")));
}

#[test]
fn allowing_all_needs_no_filter() {
    let all = |allow| rule(allow, None, None, None, "rwm");
    assert!(Filter::new(&[all(true)]).unwrap().allows_everything());
    assert!(!Filter::new(&[]).unwrap().allows_everything());
    assert!(
        !Filter::new(&[all(true), all(false)])
            .unwrap()
            .allows_everything()
    );
}

#[test]
fn rules_of_one_device_add_up() {
    let rules = [
        rule(true, CHAR, Some(10), Some(1), "r"),
        rule(true, CHAR, Some(10), Some(1), "w"),
        rule(true, CHAR, Some(10), Some(2), "rwm"),
        rule(false, CHAR, Some(10), Some(2), "w"),
    ];
    let lines = lines(&rules);
    assert!(lines.contains(&("devices.allow", "c 10:1 rw".into())));
    assert!(lines.contains(&("devices.allow", "c 10:2 rm".into())));
}

#[test]
fn a_hole_in_a_wildcard_is_not_for_v1() {
    let hole = [
        rule(true, CHAR, Some(10), None, "rwm"),
        rule(false, CHAR, Some(10), Some(1), "rw"),
    ];
    assert!(!Filter::new(&hole).unwrap().suits_legacy());
    let closed = [&hole[..], &[rule(true, CHAR, None, None, "rw")]].concat();
    assert!(Filter::new(&closed).unwrap().suits_legacy());
}

#[test]
fn nonsense_is_refused() {
    for (wrong, word) in [
        (rule(true, CHAR, Some(1 << 40), None, "r"), "[0].major"),
        (rule(true, CHAR, Some(1), Some(-2), "r"), "[0].minor"),
        (rule(true, CHAR, Some(1), Some(1), "rx"), "[0].access"),
        (rule(true, CHAR, Some(1), Some(1), ""), "[0].access"),
        (rule(false, None, None, None, "x"), "[0].access"),
    ] {
        let error = Filter::new(&[wrong]).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    let many: Vec<_> = (0..5000)
        .map(|minor| rule(true, CHAR, Some(250), Some(minor), "r"))
        .collect();
    let error = Filter::new(&many).unwrap().program().unwrap_err();
    assert!(error.to_string().contains("too many"), "{error}");
}

#[test]
fn transitions_change_only_what_differs() {
    let filter = |rules: &[LinuxDeviceCgroup]| Filter::new(rules).unwrap();
    let list = |filter: &Filter| {
        let lines = filter.lines().into_iter().skip(1);
        lines.map(|(_, line)| line + "\n").collect::<String>()
    };
    let before = filter(&[rule(true, CHAR, Some(10), Some(1), "rw")]);
    let after = filter(&[
        rule(true, CHAR, Some(10), Some(1), "r"),
        rule(true, CHAR, Some(10), Some(2), "w"),
    ]);
    assert_eq!(
        after.transition(&list(&before)),
        [
            ("devices.allow", "c 10:2 w".to_owned()),
            ("devices.deny", "c 10:1 w".to_owned()),
        ]
    );
    assert!(after.transition(&list(&after)).is_empty());
    assert_eq!(after.transition("a *:* rwm\n"), after.lines());
}

#[test]
fn entries_for_systemd() {
    let allow = Filter::new(&[rule(true, CHAR, Some(10), None, "rw")]).unwrap();
    let allow = allow.device_allow().unwrap();
    for entry in [
        ("char-10", "rw"),
        ("/dev/char/1:3", "rwm"),
        ("block-*", "m"),
    ] {
        let entry = (entry.0.to_owned(), entry.1.to_owned());
        assert!(allow.contains(&entry), "{entry:?} in {allow:?}");
    }
    let all = Filter::new(&[rule(true, None, None, None, "rwm")]).unwrap();
    assert_eq!(all.device_allow(), None);
}

/// An access asked for.
#[derive(Debug, Clone, Copy)]
struct Request {
    kind: Kind,
    major: u32,
    minor: u32,
    access: u8,
}

/// The rules as the runtime-spec has them: in order, each says something about some
/// accesses.
fn spec_allows(given: &[LinuxDeviceCgroup], request: Request) -> bool {
    let mut allowed = 0;
    let mut say = |allow: bool, access: u8| {
        if allow {
            allowed |= access;
        } else {
            allowed &= !access;
        }
    };
    for rule in given {
        let kind = match rule.typ() {
            None => {
                say(rule.allow(), ALL);
                continue;
            }
            Some(LinuxDeviceType::B) => Kind::Block,
            _ => Kind::Char,
        };
        let is = |asked: u32, ruled: Option<i64>| ruled.is_none_or(|n| n == i64::from(asked));
        if kind == request.kind
            && is(request.major, rule.major())
            && is(request.minor, rule.minor())
        {
            say(
                rule.allow(),
                access(rule.access().as_deref(), String::new).unwrap(),
            );
        }
    }
    for &(kind, major, minor, access) in ALWAYS {
        if kind == request.kind
            && major.is_none_or(|n| n == request.major)
            && minor.is_none_or(|n| n == request.minor)
        {
            say(true, access);
        }
    }
    request.access & !allowed == 0
}

/// The instructions used.
fn program_allows(program: &[BpfInsn], request: Request) -> bool {
    let kind = request.kind as u32 | u32::from(request.access) << 16;
    let context = [kind, request.major, request.minor];
    let mut registers = [0u64; 11];
    let mut at = 0usize;
    loop {
        let i = program[at];
        let (dst, src) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
        let immediate = i.immediate.cast_unsigned();
        at += 1;
        let jump = |taken: bool| {
            if taken {
                usize::try_from(i.offset).unwrap()
            } else {
                0
            }
        };
        match i.code {
            LOAD_WORD => {
                registers[dst] = u64::from(context[usize::try_from(i.offset).unwrap() / 4]);
            }
            MOV => registers[dst] = registers[src],
            MOV_K => registers[dst] = u64::from(immediate),
            AND_K => registers[dst] &= u64::from(immediate),
            RSH_K => registers[dst] >>= i.immediate,
            JA => at += jump(true),
            JEQ => at += jump(registers[dst] as u32 == immediate),
            JNE => at += jump(registers[dst] as u32 != immediate),
            JSET => at += jump(registers[dst] as u32 & immediate != 0),
            EXIT => return registers[0] == 1,
            other => panic!("unexpected instruction {other:#x}"),
        }
    }
}

/// The v1 controller (security/device_cgroup.c): what its files do, and what it decides.
#[derive(Default)]
struct Controller {
    allow: bool,
    exceptions: Vec<Rule>,
}

impl Controller {
    fn write(&mut self, file: &str, line: &str) {
        let allow = file == "devices.allow";
        if line == "a" {
            self.allow = allow;
            self.exceptions.clear();
            return;
        }
        let mut words = line.split(' ');
        let kind = if words.next() == Some("b") {
            Kind::Block
        } else {
            Kind::Char
        };
        let (major, minor) = words.next().unwrap().split_once(':').unwrap();
        let number = |text: &str| (text != "*").then(|| text.parse().unwrap());
        let devices = Devices {
            kind,
            major: number(major),
            minor: number(minor),
        };
        let access = access(words.next(), String::new).unwrap();
        let same = self.exceptions.iter_mut().find(|e| e.devices == devices);
        match (same, allow == self.allow) {
            (Some(same), true) => same.access &= !access,
            (Some(same), false) => same.access |= access,
            (None, true) => {}
            (None, false) => self.exceptions.push(Rule {
                allow,
                devices,
                access,
            }),
        }
        self.exceptions.retain(|exception| exception.access != 0);
    }

    fn allows(&self, request: Request) -> bool {
        let asked = Devices {
            kind: request.kind,
            major: Some(request.major),
            minor: Some(request.minor),
        };
        let mut matching = self.exceptions.iter().filter(|e| e.devices.cover(&asked));
        if self.allow {
            !matching.any(|exception| exception.access & request.access != 0)
        } else {
            matching.any(|exception| request.access & !exception.access == 0)
        }
    }
}

prop_compose! {
    fn any_rule()(
        allow in any::<bool>(),
        typ in 0usize..7,
        major in proptest::option::of(0i64..3),
        minor in proptest::option::of(0i64..3),
        bits in 1u8..8,
    ) -> LinuxDeviceCgroup {
        let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        let letters = letters.iter().filter(|(bit, _)| bits & bit != 0);
        let letters: String = letters.map(|(_, letter)| *letter).collect();
        let typ = match typ {
            0 => None,
            1..3 => Some(LinuxDeviceType::B),
            _ => CHAR,
        };
        rule(allow, typ, major, minor, &letters)
    }
}

prop_compose! {
    fn any_request()(
        block in any::<bool>(), major in 0u32..3, minor in 0u32..3, access in 1u8..8,
    ) -> Request {
        let kind = if block { Kind::Block } else { Kind::Char };
        // The kernel asks for a node by itself.
        let access = if access & MKNOD != 0 { MKNOD } else { access };
        Request { kind, major, minor, access }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn program_means_the_rules(
        rules in proptest::collection::vec(any_rule(), 0..12),
        request in any_request(),
    ) {
        let program = Filter::new(&rules).unwrap().program().unwrap();
        prop_assert_eq!(program_allows(&program, request), spec_allows(&rules, request));
    }

    #[test]
    fn v1_means_the_rules(
        rules in proptest::collection::vec(any_rule(), 0..8),
        before in proptest::collection::vec(any_rule(), 0..8),
        request in any_request(),
    ) {
        let (filter, before) = (Filter::new(&rules).unwrap(), Filter::new(&before).unwrap());
        prop_assume!(filter.suits_legacy() && before.suits_legacy());
        let mut controller = Controller::default();
        for (file, line) in filter.lines() {
            controller.write(file, &line);
        }
        prop_assert_eq!(controller.allows(request), spec_allows(&rules, request));
        // From any other state, too.
        for (file, line) in before.lines() {
            controller.write(file, &line);
        }
        let list: String = if controller.allow {
            "a *:* rwm\n".into()
        } else {
            before.lines().into_iter().skip(1).map(|(_, line)| line + "\n").collect()
        };
        for (file, line) in filter.transition(&list) {
            controller.write(file, &line);
        }
        prop_assert_eq!(controller.allows(request), spec_allows(&rules, request));
    }

    #[test]
    fn simplifying_loses_nothing_and_is_final(
        rules in proptest::collection::vec(any_rule(), 0..12),
    ) {
        let filter = Filter::new(&rules).unwrap();
        prop_assert_eq!(&simplified(filter.allow, filter.rules.clone()), &filter.rules);
    }
}
