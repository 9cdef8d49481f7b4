//! The rules themselves. A change here needs a new [`VERSION`], and the one before goes to [`OLDER`].

use super::elements::{
    BRIDGES, GUARDED, INTERNAL, MASQUERADED, MASQUERADED6, Maps, OPEN, PUBLISHED, SUBNETS,
    SUBNETS6, TALKING, UNPROTECTED, UNPROTECTED6, link,
};
use crate::nft::{Ct, Expr, Hook, Meta, Transaction, Verdict, reg};

/// An empty chain whose name is the version of the rules; it is there if they are that or newer.
pub(super) const VERSION: &str = "rules-6";
/// Those of older versions, which are kept: a supervisor of an older program looks for its own, finds
/// it, and leaves the newer rules alone. Newer rules must therefore do with the elements of older ones.
const OLDER: [&str; 5] = ["rules-1", "rules-2", "rules-3", "rules-4", "rules-5"];
/// Families as `meta nfproto` has them.
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_IPV6: u8 = 10;
/// `RTN_LOCAL`: an address of this host.
const LOCAL: u32 = 2;
/// `NF_CT_STATE_BIT`s of established and related.
const GOES_ON: u32 = 0b110;
/// Offsets in the IPv4 header (RFC 791).
const SOURCE4: u32 = 12;
const DESTINATION4: u32 = 16;
/// `IPS_DST_NAT`.
const DST_NAT: u32 = 1 << 5;

/// Everything but the elements, in place of whatever rules there are.
pub(super) fn define(t: &mut Transaction<'_>) {
    t.table();
    for set in [
        &BRIDGES,
        &TALKING,
        &INTERNAL,
        &UNPROTECTED,
        &UNPROTECTED6,
        &SUBNETS,
        &SUBNETS6,
        &MASQUERADED,
        &MASQUERADED6,
        &GUARDED,
    ]
    .into_iter()
    .chain(PUBLISHED.all())
    .chain(OPEN.all())
    {
        t.set(set);
    }
    for version in OLDER.into_iter().chain([VERSION]) {
        t.chain(version, None);
    }
    for chain in [
        "loopback", "asked", "publish", "publish6", "open", "open6", "leaving", "leaving6",
    ] {
        t.chain(chain, None);
    }
    // Priorities: raw -300, dstnat -100, filter 0, srcnat 100 (nft(8), "Standard priority names").
    t.chain("guard", Some(("filter", Hook::Prerouting, -300)));
    t.chain("prerouting", Some(("nat", Hook::Prerouting, -100)));
    t.chain("output", Some(("nat", Hook::Output, -100)));
    t.chain("forward", Some(("filter", Hook::Forward, 0)));
    t.chain("postrouting", Some(("nat", Hook::Postrouting, 100)));
    t.flush_rules();
    guard(t);
    publishing(t);
    forward(t);
    postrouting(t);
}

// Every packet of the host passes `guard` and `forward`: what most of them fail comes first in a rule, and
// a name of a link, which is sixteen bytes to be hashed, last.

fn guard(t: &mut Transaction<'_>) {
    let from_bridge = [
        Expr::Meta(Meta::InName, reg::KEY),
        Expr::In(BRIDGES.name, reg::KEY),
        Expr::Verdict(Verdict::Drop),
    ];
    let mut rule = |chain, comment, exprs: &[&[Expr]]| t.rule(chain, comment, &exprs.concat());
    rule(
        "guard",
        "to a loopback",
        &[
            &ipv4(),
            &loopback(DESTINATION4),
            &[Expr::Verdict(Verdict::Jump("loopback"))],
        ],
    );
    rule(
        "guard",
        "from a forged loopback",
        &[&ipv4(), &loopback(SOURCE4), &from_bridge],
    );
    rule("loopback", "to the host's loopback", &[&from_bridge]);
    // Also where somebody else has switched `route_localnet` on, as kube-proxy does: else it would arrive
    // at the port's socket.
    rule(
        "loopback",
        "published at this address of the loopback (published_at), from outside",
        &[
            &from_outside(),
            &ipv4(),
            &[
                Expr::Network(DESTINATION4, 4, reg::KEY),
                Expr::Meta(Meta::Protocol, reg::KEY + 1),
                Expr::Transport(2, 2, reg::KEY + 2),
                Expr::Map(PUBLISHED.at.name, reg::KEY),
                Expr::Verdict(Verdict::Drop),
            ],
        ],
    );
}

/// Goes on for packets that the host has not sent itself.
fn from_outside() -> [Expr; 2] {
    [
        Expr::Meta(Meta::InName, reg::KEY),
        Expr::Differs(reg::KEY, link("lo").key),
    ]
}

/// Goes on if the IPv4 address at that offset is in 127.0.0.0/8.
fn loopback(offset: u32) -> [Expr; 3] {
    [
        Expr::Network(offset, 4, reg::KEY),
        Expr::Mask(reg::KEY, vec![255, 0, 0, 0]),
        Expr::Equals(reg::KEY, vec![127, 0, 0, 0]),
    ]
}

fn publishing(t: &mut Transaction<'_>) {
    let local = |chain| {
        [
            Expr::DestinationKind(reg::KEY),
            Expr::Equals(reg::KEY, LOCAL.to_ne_bytes().to_vec()),
            Expr::Verdict(Verdict::Jump(chain)),
        ]
    };
    // RFC 8200: the destination is at 24. fe80::/10, and ::1.
    let mut loopback6 = vec![0; 16];
    if let Some(last) = loopback6.last_mut() {
        *last = 1;
    }
    let translatable = [
        Expr::Network(24, 2, reg::KEY),
        Expr::Mask(reg::KEY, vec![0xff, 0xc0]),
        Expr::Differs(reg::KEY, vec![0xfe, 0x80]),
        Expr::Network(24, 16, reg::KEY),
        Expr::Differs(reg::KEY, loopback6),
    ];
    // Translated, it would be routed on before anybody finds that it has no business on a wire.
    let accept = [Expr::Verdict(Verdict::Accept)];
    let martian: [&[Expr]; 4] = [&ipv4(), &loopback(DESTINATION4), &from_outside(), &accept];
    t.rule(
        "prerouting",
        "to the host's loopback: not translated",
        &martian.concat(),
    );
    t.rule(
        "prerouting",
        "from outside, where the host drops by default",
        &[
            Expr::Meta(Meta::Family, reg::KEY),
            Expr::In(GUARDED.name, reg::KEY),
            Expr::Meta(Meta::InName, reg::KEY),
            Expr::NotIn(BRIDGES.name, reg::KEY),
            Expr::Verdict(Verdict::Goto("asked")),
        ],
    );
    for (chain, v4, v6) in [
        ("prerouting", "publish", "publish6"),
        ("output", "publish", "publish6"),
        ("asked", "open", "open6"),
    ] {
        let mut rule = |exprs: &[&[Expr]]| {
            t.rule(chain, "to an address of this host", &exprs.concat());
        };
        rule(&[&ipv4(), &local(v4)]);
        rule(&[&ipv6(), &translatable, &local(v6)]);
    }
    translation(t, &PUBLISHED, "publish", "publish6");
    translation(t, &OPEN, "open", "open6");
}

/// The chains of both families that look a packet's destination up.
fn translation(t: &mut Transaction<'_>, maps: &'static Maps, chain4: &str, chain6: &str) {
    // Known already, but `nft list` shows the address by its name with it.
    let (v4, v6) = (ipv4(), ipv6());
    // Where headers have the destination: RFC 791, RFC 8200.
    let families: [(_, &[Expr], _, _, _); 2] = [
        (
            chain4,
            &v4,
            (DESTINATION4, 4),
            [&maps.at, &maps.every],
            Expr::Dnat4,
        ),
        (
            chain6,
            &v6,
            (24, 16),
            [&maps.at6, &maps.every6],
            Expr::Dnat6,
        ),
    ];
    for (chain, family, (offset, length), [at, every], dnat) in families {
        // Registers are of four bytes.
        let after = reg::KEY + length / 4;
        let one = [
            Expr::Network(offset, length, reg::KEY),
            Expr::Meta(Meta::Protocol, after),
            Expr::Transport(2, 2, after + 1),
            Expr::Map(at.name, reg::KEY),
            dnat.clone(),
        ];
        let any = [
            Expr::Meta(Meta::Protocol, reg::KEY),
            Expr::Transport(2, 2, reg::KEY + 1),
            Expr::Map(every.name, reg::KEY),
            dnat,
        ];
        t.rule(chain, "published on one address", &[family, &one].concat());
        t.rule(chain, "published on every address", &any);
    }
}

fn forward(t: &mut Transaction<'_>) {
    let from = |set| [Expr::Meta(Meta::InName, reg::KEY), Expr::In(set, reg::KEY)];
    let to = |set| [Expr::Meta(Meta::OutName, reg::KEY), Expr::In(set, reg::KEY)];
    let mut rule = |comment, exprs: &[&[Expr]]| t.rule("forward", comment, &exprs.concat());
    let accept = [Expr::Verdict(Verdict::Accept)];
    let drop = [Expr::Verdict(Verdict::Drop)];
    // A connection goes on only if its first packet has passed what follows. None does by way of an internal
    // network: what comes from there or goes there pretends to be somebody else's.
    let not_internal = |link| {
        [
            Expr::Meta(link, reg::KEY),
            Expr::NotIn(INTERNAL.name, reg::KEY),
        ]
    };
    rule(
        "connections that go on",
        &[
            &ct_bits(Ct::State, GOES_ON),
            &not_internal(Meta::InName),
            &not_internal(Meta::OutName),
            &accept,
        ],
    );
    rule(
        "containers of one network",
        &[
            &[
                Expr::Meta(Meta::InName, reg::KEY),
                Expr::Meta(Meta::OutName, reg::KEY + 4),
                Expr::In(TALKING.name, reg::KEY),
            ],
            &accept,
        ],
    );
    rule("out of an internal network", &[&from(INTERNAL.name), &drop]);
    rule("into an internal network", &[&to(INTERNAL.name), &drop]);
    rule(
        "published ports",
        &[&ct_bits(Ct::Status, DST_NAT), &to(BRIDGES.name), &accept],
    );
    for (family, set) in [(ipv4(), &UNPROTECTED), (ipv6(), &UNPROTECTED6)] {
        rule(
            "from outside to networks that want all of it",
            &[
                &family,
                &to(set.name),
                &[
                    Expr::Meta(Meta::InName, reg::KEY),
                    Expr::NotIn(BRIDGES.name, reg::KEY),
                ],
                &accept,
            ],
        );
    }
    rule(
        "everything else to a container",
        &[&to(BRIDGES.name), &drop],
    );
}

fn postrouting(t: &mut Transaction<'_>) {
    let out = Expr::Meta(Meta::OutName, reg::KEY);
    let to_bridge = [out.clone(), Expr::In(BRIDGES.name, reg::KEY)];
    let to_outside = [out, Expr::NotIn(BRIDGES.name, reg::KEY)];
    let masquerade = [Expr::Masquerade];
    let mut rule = |chain, comment, exprs: &[&[Expr]]| t.rule(chain, comment, &exprs.concat());
    // Said again in each chain: `nft list` shows addresses by their names with it.
    let (v4, v6) = (ipv4(), ipv6());
    // Where headers have the source: RFC 791, RFC 8200.
    let families: [(_, &[Expr], _, _, _); 2] = [
        (
            "leaving",
            &v4,
            Expr::Network(SOURCE4, 4, reg::KEY),
            &SUBNETS,
            &MASQUERADED,
        ),
        (
            "leaving6",
            &v6,
            Expr::Network(8, 16, reg::KEY),
            &SUBNETS6,
            &MASQUERADED6,
        ),
    ];
    for (chain, family, source, subnets, masqueraded) in families {
        let go = [Expr::Verdict(Verdict::Goto(chain))];
        rule("postrouting", "connections from here", &[family, &go]);
        if chain == "leaving" {
            rule(
                chain,
                "127.0.0.1 to a published port",
                &[family, &loopback(SOURCE4), &to_bridge, &masquerade],
            );
        }
        let from = |set: &'static str| [source.clone(), Expr::In(set, reg::KEY)];
        rule(
            chain,
            "container to a published port of its own or a neighbour's",
            &[
                &ct_bits(Ct::Status, DST_NAT),
                family,
                &from(subnets.name),
                &to_bridge,
                &masquerade,
            ],
        );
        rule(
            chain,
            "container to outside",
            &[family, &from(masqueraded.name), &to_outside, &masquerade],
        );
    }
}

/// Goes on for IPv4 packets.
fn ipv4() -> [Expr; 2] {
    family(NFPROTO_IPV4)
}

/// Goes on for IPv6 packets.
fn ipv6() -> [Expr; 2] {
    family(NFPROTO_IPV6)
}

fn family(number: u8) -> [Expr; 2] {
    [
        Expr::Meta(Meta::Family, reg::KEY),
        Expr::Equals(reg::KEY, vec![number]),
    ]
}

/// Goes on if any of the bits is set.
fn ct_bits(key: Ct, bits: u32) -> [Expr; 3] {
    [
        Expr::Ct(key, reg::KEY),
        Expr::Mask(reg::KEY, bits.to_ne_bytes().to_vec()),
        Expr::Differs(reg::KEY, vec![0; 4]),
    ]
}
