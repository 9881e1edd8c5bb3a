//! How deep objects and lists lie in one another: readers of JSON give up at some depth, whoever sends it.

/// Whether valid JSON is nested deeper than `max`.
pub fn is_deeper(json: &str, max: usize) -> bool {
    // Too few brackets to be deep, which a machine sees many bytes at a time: nearly every answer.
    json.bytes().filter(|byte| matches!(byte, b'{' | b'[')).count() > max && depth(json) > max
}

fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0_usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        if in_string {
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}
