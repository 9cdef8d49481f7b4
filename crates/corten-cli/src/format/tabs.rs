//! Columns out of tabs, as Go's `text/tabwriter` makes them with Docker's settings: cells at
//! least ten wide, three spaces between; a column is as wide as it must be over the lines
//! that follow one another and have it.

const MIN_WIDTH: usize = 10;
const PADDING: usize = 3;

/// Aligns the cells of a text with Docker's usual widths.
#[must_use]
pub(crate) fn align(text: &str) -> String {
    align_with(text, MIN_WIDTH, PADDING)
}

/// Aligns with other widths.
#[must_use]
pub(crate) fn align_with(text: &str, min_width: usize, padding: usize) -> String {
    let lines: Vec<Vec<&str>> = text
        .split('\n')
        .map(|line| line.split('\t').collect())
        .collect();
    let mut widths: Vec<Vec<usize>> = lines
        .iter()
        .map(|cells| vec![0; cells.len().saturating_sub(1)])
        .collect();
    let columns = widths.iter().map(Vec::len).max().unwrap_or(0);
    for column in 0..columns {
        let mut start = 0;
        while start < lines.len() {
            if widths[start].len() <= column {
                start += 1;
                continue;
            }
            let end = (start..lines.len())
                .find(|line| widths[*line].len() <= column)
                .unwrap_or(lines.len());
            let widest = lines[start..end]
                .iter()
                .map(|cells| cells[column].chars().count() + padding)
                .max()
                .unwrap_or(0)
                .max(min_width);
            for width in &mut widths[start..end] {
                width[column] = widest;
            }
            start = end;
        }
    }
    let mut out = String::with_capacity(text.len() * 2);
    for (number, (cells, widths)) in lines.iter().zip(&widths).enumerate() {
        if number > 0 {
            out.push('\n');
        }
        for (index, cell) in cells.iter().enumerate() {
            out.push_str(cell);
            if let Some(width) = widths.get(index) {
                out.extend(std::iter::repeat_n(
                    ' ',
                    width.saturating_sub(cell.chars().count()),
                ));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_like_docker() {
        insta::assert_snapshot!(align("ID\tIMAGE\tNAMES\nabc\ta-long-image-name\tx\ndef\té\ty\n"), @r#"
        ID        IMAGE               NAMES
        abc       a-long-image-name   x
        def       é                   y
        "#);
        // Blocks of lines with different numbers of cells do not widen one another.
        assert_eq!(
            align_with("aaaaa\tb\nplain\nc\td\n", 0, 1),
            "aaaaa b\nplain\nc d\n"
        );
    }
}
