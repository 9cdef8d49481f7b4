//! `image ls --tree`: images, and below each the platforms it is there for.

use serde::Deserialize;

use crate::format::units;

/// Between columns.
const GAP: &str = "   ";
/// What the last column shows.
const LEGEND: &str = "Info ->  U In Use";

/// An image of the list.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Image {
    id: String,
    repo_tags: Option<Vec<String>>,
    size: i64,
    containers: i64,
    manifests: Option<Vec<Manifest>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Manifest {
    #[serde(rename = "ID")]
    id: String,
    kind: String,
    size: Size,
    image_data: Option<Data>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Size {
    total: i64,
    content: i64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Data {
    platform: Platform,
    containers: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

/// A line: its first column, and the rest where there is one.
type Line = (String, Option<[String; 4]>);

fn details(id: &str, usage: i64, content: i64, used: bool) -> [String; 4] {
    [
        units::short_id(id),
        units::size(usage),
        units::size(content),
        if used { " U " } else { "" }.to_owned(),
    ]
}

/// The whole tree.
pub(super) fn render(images: Vec<Image>) -> String {
    let mut lines: Vec<Line> = Vec::new();
    for image in &images {
        if !lines.is_empty() {
            lines.push((String::new(), None));
        }
        let children: Vec<(&Manifest, &Data)> = image
            .manifests
            .iter()
            .flatten()
            .filter(|manifest| manifest.kind == "image")
            .filter_map(|manifest| Some((manifest, manifest.image_data.as_ref()?)))
            .collect();
        let sum = |size: fn(&Size) -> i64| children.iter().map(|(m, _)| size(&m.size)).sum();
        let content = sum(|size| size.content);
        // What the platforms take is unpacked files and content.
        let usage = image.size.max(sum(|size| size.total));
        let used =
            image.containers > 0 || children.iter().any(|(_, data)| !data.containers.is_empty());
        let own = details(&image.id, usage, content, used);
        let tags = image.repo_tags.as_deref().unwrap_or_default();
        match tags.split_last() {
            Some((last, others)) => {
                lines.extend(others.iter().map(|tag| (tag.clone(), None)));
                lines.push((last.clone(), Some(own)));
            }
            None => lines.push(("<untagged>".to_owned(), Some(own))),
        }
        for (at, (manifest, data)) in children.iter().enumerate() {
            let branch = if at + 1 == children.len() {
                "└─"
            } else {
                "├─"
            };
            let Platform {
                os,
                architecture,
                variant,
            } = &data.platform;
            let mut platform = format!("{branch} {os}/{architecture}");
            if !variant.is_empty() {
                platform.push_str(&format!("/{variant}"));
            }
            let used = !data.containers.is_empty();
            let size = &manifest.size;
            let own = details(&manifest.id, size.total, size.content, used);
            lines.push((platform, Some(own)));
        }
    }
    table(&lines)
}

fn table(lines: &[Line]) -> String {
    let first = lines
        .iter()
        .map(|(name, _)| name.chars().count())
        .chain(["IMAGE".len()])
        .max()
        .unwrap_or_default();
    let row = |name: &str, [id, usage, content, extra]: [&str; 4]| {
        let row =
            format!("{name:first$}{GAP}{id:12}{GAP}{usage:>10}{GAP}{content:>12}{GAP}{extra}");
        format!("{}\n", row.trim_end())
    };
    let header = row("IMAGE", ["ID", "DISK USAGE", "CONTENT SIZE", "EXTRA"]);
    let width = header.trim_end().chars().count();
    let mut out = format!(
        "WARNING: This is an experimental feature. The output may change and shouldn't be depended on.\n\
         {LEGEND:>width$}\n\n{header}"
    );
    for (name, rest) in lines {
        match rest {
            None => out.push_str(&format!("{name}\n")),
            Some([id, usage, content, extra]) => {
                out.push_str(&row(name, [id, usage, content, extra]));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_details_and_platforms() {
        let images: Vec<Image> = serde_json::from_str(
            r#"[{"Id":"sha256:0123456789abcdef","RepoTags":["app:1","app:latest"],"Size":7830000,
                 "Containers":-1,"Manifests":[
                {"ID":"sha256:fedcba98765432100","Kind":"image","Size":{"Total":9000000,"Content":3000000},
                 "ImageData":{"Platform":{"os":"linux","architecture":"arm","variant":"v7"},
                              "Containers":["x"]}},
                {"ID":"sha256:1","Kind":"attestation","Size":{"Total":1,"Content":1}}]},
                {"Id":"sha256:aaaaaaaaaaaaaaaa","RepoTags":[],"Size":5,"Containers":0,"Manifests":null}]"#,
        )
        .unwrap();
        let expected = [
            "WARNING: This is an experimental feature. The output may change and shouldn't be depended on.",
            "                                                 Info ->  U In Use",
            "",
            "IMAGE             ID             DISK USAGE   CONTENT SIZE   EXTRA",
            "app:1",
            "app:latest        0123456789ab          9MB            3MB    U",
            "└─ linux/arm/v7   fedcba987654          9MB            3MB    U",
            "",
            "<untagged>        aaaaaaaaaaaa           5B             0B",
        ];
        assert_eq!(render(images), format!("{}\n", expected.join("\n")));
    }
}
