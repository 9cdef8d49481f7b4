//! What EXPOSE accepts: `[HOST:]PORT[-PORT][/PROTOCOL]`. The host part is dropped, as it says
//! nothing about the image.

/// The words as `port/protocol`, ranges spread out.
pub(super) fn parse(word: &str) -> Result<Vec<String>, String> {
    let (ports, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_lowercase();
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("invalid proto: {protocol}"));
    }
    let ports = ports.rsplit(':').next().unwrap_or(ports);
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |text: &str| {
        text.parse::<u16>()
            .map_err(|_| format!("invalid containerPort: {ports}"))
    };
    let (first, last) = (number(first)?, number(last)?);
    if last < first {
        return Err(format!("invalid containerPort: {ports}"));
    }
    Ok((first..=last)
        .map(|port| format!("{port}/{protocol}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn words() {
        assert_eq!(parse("80").unwrap(), ["80/tcp"]);
        assert_eq!(parse("53/UDP").unwrap(), ["53/udp"]);
        assert_eq!(parse("80-82").unwrap(), ["80/tcp", "81/tcp", "82/tcp"]);
        assert_eq!(parse("127.0.0.1:8080:80").unwrap(), ["80/tcp"]);
        assert_eq!(parse("http").unwrap_err(), "invalid containerPort: http");
        assert!(parse("9-8").is_err() && parse("70000").is_err() && parse("1/x").is_err());
    }
}
