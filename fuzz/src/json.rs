//! Changes JSON as JSON: a value for another, a key gone, a list longer. Bytes changed at random seldom get past the
//! parser, and what lies behind it is what the planners' targets are about.

use serde_json::{Value, json};

/// Changes the first `size` bytes of `data`; returns how many there are then.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = fastrand::Rng::with_seed(seed.into());
    let parsed = data.get(..size).and_then(|text| serde_json::from_slice::<Value>(text).ok());
    let Some(mut document) = parsed.filter(|_| random.u8(..16) != 0) else {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    };
    for _ in 0..random.usize(1..4) {
        change(&mut document, &mut random);
    }
    match serde_json::to_vec(&document) {
        Ok(text) if text.len() <= max_size && text.len() <= data.len() => {
            data[..text.len()].copy_from_slice(&text);
            text.len()
        }
        _ => libfuzzer_sys::fuzzer_mutate(data, size, max_size),
    }
}

fn change(document: &mut Value, random: &mut fastrand::Rng) {
    let nodes = count(document);
    // A part of the document itself is often the most telling value: a name for another name, a list in a list.
    let other = nth(document, random.usize(..nodes)).clone();
    let node = nth_mut(document, random.usize(..nodes));
    match (random.u8(..8), &mut *node) {
        (0, Value::Object(map)) if !map.is_empty() => {
            let key = map.keys().nth(random.usize(..map.len())).cloned().unwrap_or_default();
            map.remove(&key);
        }
        (0, Value::Array(list)) if !list.is_empty() => {
            list.remove(random.usize(..list.len()));
        }
        (1, Value::Array(list)) if !list.is_empty() && list.len() < 200 => {
            let copy = list[random.usize(..list.len())].clone();
            list.push(copy);
        }
        (2, Value::Array(list)) => list.reverse(),
        (1 | 2, Value::Object(map)) => {
            let keys: Vec<String> = map.keys().cloned().collect();
            if let Some(key) = random.choice(keys) {
                map.insert(key, other);
            }
        }
        (3, _) => *node = other,
        (_, Value::Number(number)) => *node = number_near(number, random),
        (_, Value::String(text)) => *text = text_near(text, random),
        (_, Value::Bool(value)) => *value = !*value,
        _ => *node = interesting(random),
    }
}

fn number_near(number: &serde_json::Number, random: &mut fastrand::Rng) -> Value {
    let old = number.as_i64().unwrap_or_default();
    match random.u8(..6) {
        0 => json!(old.wrapping_add(1)),
        1 => json!(old.wrapping_sub(1)),
        2 => json!(old.wrapping_neg()),
        3 => json!(old.wrapping_mul(1024)),
        4 => json!(i64::from(random.i8(..))),
        _ => interesting(random),
    }
}

fn text_near(text: &str, random: &mut fastrand::Rng) -> String {
    const TEXTS: [&str; 34] = [
        "",
        "a",
        "-",
        ".",
        "..",
        "../..",
        "/",
        "/etc/shadow",
        "0",
        "1",
        "-1",
        "1.5Gi",
        "16Ei",
        "17Ei",
        "12 bananas",
        "512",
        "64Ti",
        "default",
        "host1",
        "u1",
        "\u{0}",
        "\u{7f}",
        "\u{fffe}",
        "ü",
        "日本",
        "00:00:00:00:00:00",
        "02:76:00:00:00:01",
        "0000:00:1f.7",
        "10.88.0.0/24",
        "0.0.0.0/0",
        "https://[::1]/x",
        "2026-01-01T12:00:00Z",
        "9999-12-31T23:59:59Z",
        "-009999-01-02T01:59:59Z",
    ];
    match random.u8(..5) {
        0 => text.chars().rev().collect(),
        1 => text.chars().take(random.usize(..text.len().max(1))).collect(),
        2 => format!("{text}{}", random.choice(TEXTS).unwrap_or_default()),
        3 => text.repeat(random.usize(2..9)).chars().take(70_000).collect(),
        _ => random.choice(TEXTS).unwrap_or_default().to_owned(),
    }
}

fn interesting(random: &mut fastrand::Rng) -> Value {
    let values = [
        Value::Null,
        json!(true),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(i64::MAX),
        json!(i64::MIN),
        json!(u64::MAX),
        json!(i32::MAX),
        json!(i32::MIN),
        json!(""),
        json!([]),
        json!({}),
    ];
    random.choice(values).unwrap_or_default()
}

fn count(node: &Value) -> usize {
    1 + match node {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

fn nth(node: &Value, mut n: usize) -> &Value {
    let mut node = node;
    while n > 0 {
        n -= 1;
        let children: Vec<&Value> = match node {
            Value::Array(list) => list.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => return node,
        };
        let mut found = node;
        for child in children {
            let size = count(child);
            if n < size {
                found = child;
                break;
            }
            n -= size;
        }
        node = found;
    }
    node
}

fn nth_mut(node: &mut Value, n: usize) -> &mut Value {
    if n == 0 {
        return node;
    }
    let mut left = n - 1;
    let sizes: Vec<usize> = match node {
        Value::Array(list) => list.iter().map(count).collect(),
        Value::Object(map) => map.values().map(count).collect(),
        _ => return node,
    };
    let mut index = 0;
    for size in sizes {
        if left < size {
            break;
        }
        left -= size;
        index += 1;
    }
    match node {
        Value::Array(list) => nth_mut(&mut list[index], left),
        Value::Object(map) => match map.values_mut().nth(index) {
            Some(child) => nth_mut(child, left),
            None => unreachable!("the index was counted from the same map"),
        },
        _ => unreachable!("only lists and maps have children"),
    }
}
