//! The rules themselves. A change here needs a new [`VERSION`].

use super::elements::{BRIDGES, INTERNAL, PUBLISHED, PUBLISHED_AT, SUBNETS, SUBNETS6, TALKING};
use crate::nft::{Ct, Expr, Hook, Meta, Transaction, Verdict, reg};

/// An empty chain whose name is the version of the rules; it is there if they are up to date.
pub(super) const VERSION: &str = "rules-1";
/// Families as `meta nfproto` has them.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// `RTN_LOCAL`: an address of this host.
const LOCAL: u32 = 2;
/// `NF_CT_STATE_BIT`s of established and related.
const REPLY: u32 = 0b110;
/// `IPS_DST_NAT`.
const DST_NAT: u32 = 1 << 5;

/// Everything but the elements, in place of whatever rules there are.
pub(super) fn define(t: &mut Transaction<'_>) {
    t.table();
    for set in [
        &BRIDGES,
        &TALKING,
        &INTERNAL,
        &SUBNETS,
        &SUBNETS6,
        &PUBLISHED,
        &PUBLISHED_AT,
    ] {
        t.set(set);
    }
    t.chain(VERSION, None);
    t.chain("publish", None);
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

fn guard(t: &mut Transaction<'_>) {
    // Offsets of the IPv4 header: source 12, destination 16 (RFC 791).
    for (offset, comment) in [
        (16, "to the host's loopback"),
        (12, "from a forged loopback"),
    ] {
        let mut rule = vec![
            Expr::Meta(Meta::InName, reg::KEY),
            Expr::In(BRIDGES.name, reg::KEY),
        ];
        rule.extend(ipv4());
        rule.extend([
            Expr::Network(offset, 4, reg::KEY),
            Expr::Mask(reg::KEY, vec![255, 0, 0, 0]),
            Expr::Equals(reg::KEY, vec![127, 0, 0, 0]),
            Expr::Verdict(Verdict::Drop),
        ]);
        t.rule("guard", comment, &rule);
    }
}

fn publishing(t: &mut Transaction<'_>) {
    for chain in ["prerouting", "output"] {
        let mut rule = Vec::from(ipv4());
        rule.extend([
            Expr::DestinationKind(reg::KEY),
            Expr::Equals(reg::KEY, LOCAL.to_ne_bytes().to_vec()),
            Expr::Verdict(Verdict::Jump("publish")),
        ]);
        t.rule(chain, "to an address of this host", &rule);
    }
    t.rule(
        "publish",
        "published on one address",
        &[
            // Known already, but `nft list` shows the address by its name with it.
            Expr::Meta(Meta::Family, reg::KEY),
            Expr::Equals(reg::KEY, vec![NFPROTO_IPV4]),
            Expr::Network(16, 4, reg::KEY),
            Expr::Meta(Meta::Protocol, reg::KEY + 1),
            Expr::Transport(2, 2, reg::KEY + 2),
            Expr::Map(PUBLISHED_AT.name, reg::KEY),
            Expr::Dnat4,
        ],
    );
    t.rule(
        "publish",
        "published on every address",
        &[
            Expr::Meta(Meta::Protocol, reg::KEY),
            Expr::Transport(2, 2, reg::KEY + 1),
            Expr::Map(PUBLISHED.name, reg::KEY),
            Expr::Dnat4,
        ],
    );
}

fn forward(t: &mut Transaction<'_>) {
    let from = |set| [Expr::Meta(Meta::InName, reg::KEY), Expr::In(set, reg::KEY)];
    let to = |set| [Expr::Meta(Meta::OutName, reg::KEY), Expr::In(set, reg::KEY)];
    let mut rule = |comment, exprs: &[&[Expr]]| t.rule("forward", comment, &exprs.concat());
    let accept = [Expr::Verdict(Verdict::Accept)];
    let drop = [Expr::Verdict(Verdict::Drop)];
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
        "replies",
        &[&to(BRIDGES.name), &ct_bits(Ct::State, REPLY), &accept],
    );
    rule(
        "published ports",
        &[&to(BRIDGES.name), &ct_bits(Ct::Status, DST_NAT), &accept],
    );
    rule(
        "everything else to a container",
        &[&to(BRIDGES.name), &drop],
    );
}

fn postrouting(t: &mut Transaction<'_>) {
    let out = Expr::Meta(Meta::OutName, reg::KEY);
    let to_bridge = [out.clone(), Expr::In(BRIDGES.name, reg::KEY)];
    let to_outside = [out, Expr::NotIn(BRIDGES.name, reg::KEY)];
    let source4 = Expr::Network(12, 4, reg::KEY);
    let from_subnet = [source4.clone(), Expr::In(SUBNETS.name, reg::KEY)];
    let from_loopback = [
        source4,
        Expr::Mask(reg::KEY, vec![255, 0, 0, 0]),
        Expr::Equals(reg::KEY, vec![127, 0, 0, 0]),
    ];
    let mut rule = |comment, exprs: &[&[Expr]]| t.rule("postrouting", comment, &exprs.concat());
    let masquerade = [Expr::Masquerade];
    rule(
        "container to a published port of its own or a neighbour's",
        &[
            &to_bridge,
            &ipv4(),
            &ct_bits(Ct::Status, DST_NAT),
            &from_subnet,
            &masquerade,
        ],
    );
    rule(
        "127.0.0.1 to a published port",
        &[&to_bridge, &ipv4(), &from_loopback, &masquerade],
    );
    rule(
        "container to outside",
        &[&to_outside, &ipv4(), &from_subnet, &masquerade],
    );
    // IPv6 header: source at 8 (RFC 8200).
    let ipv6 = [
        Expr::Meta(Meta::Family, reg::KEY),
        Expr::Equals(reg::KEY, vec![NFPROTO_IPV6]),
    ];
    let from_subnet6 = [
        Expr::Network(8, 16, reg::KEY),
        Expr::In(SUBNETS6.name, reg::KEY),
    ];
    rule(
        "container to outside",
        &[&to_outside, &ipv6, &from_subnet6, &masquerade],
    );
}

/// Goes on for IPv4 packets.
fn ipv4() -> [Expr; 2] {
    [
        Expr::Meta(Meta::Family, reg::KEY),
        Expr::Equals(reg::KEY, vec![NFPROTO_IPV4]),
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
