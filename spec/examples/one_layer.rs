// A program for: lstm-spec --stdio "./one_layer". One layer in float64, no gradients, the standard library alone.
// Build: rustc -O -o one_layer one_layer.rs
use std::collections::HashMap;
use std::io::{self, BufRead, Write};

#[derive(Clone)]
enum Value {
    Number(f64),
    Text(String),
    List(Vec<Value>),
    Object(HashMap<String, Value>),
    Nothing, // false and null: an option that is off
}
use Value::*;

struct Parser<'a> {
    text: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn next(&mut self) -> u8 {
        while self.text[self.at].is_ascii_whitespace() || self.text[self.at] == b',' || self.text[self.at] == b':' {
            self.at += 1;
        }
        self.text[self.at]
    }

    fn string(&mut self) -> String {
        let start = self.at + 1;
        self.at = start;
        while self.text[self.at] != b'"' {
            self.at += if self.text[self.at] == b'\\' { 2 } else { 1 };
        }
        self.at += 1;
        String::from_utf8_lossy(&self.text[start..self.at - 1]).into_owned()
    }

    fn value(&mut self) -> Value {
        match self.next() {
            b'{' => {
                let mut found = HashMap::new();
                self.at += 1;
                while self.next() != b'}' {
                    let name = self.string();
                    found.insert(name, self.value());
                }
                self.at += 1;
                Object(found)
            }
            b'[' => {
                let mut found = Vec::new();
                self.at += 1;
                while self.next() != b']' {
                    found.push(self.value());
                }
                self.at += 1;
                List(found)
            }
            b'"' => Text(self.string()),
            first => {
                let start = self.at;
                while self.at < self.text.len() && !b",]} \r\n\t".contains(&self.text[self.at]) {
                    self.at += 1;
                }
                let word = std::str::from_utf8(&self.text[start..self.at]).unwrap();
                match first {
                    b't' => Number(1.0),
                    b'f' | b'n' => Nothing,
                    _ => Number(word.parse().unwrap()),
                }
            }
        }
    }
}

impl Value {
    fn get(&self, name: &str) -> &Value {
        match self {
            Object(members) => members.get(name).unwrap_or(&Nothing),
            _ => &Nothing,
        }
    }

    fn number(&self) -> f64 {
        match self {
            Number(v) => *v,
            Text(word) => word.parse().unwrap(), // nan, inf and -inf are numbers in quotation marks
            _ => 0.0,
        }
    }

    fn numbers(&self) -> Vec<f64> {
        match self {
            List(items) => items.iter().map(Value::number).collect(),
            _ => Vec::new(),
        }
    }

    fn text(&self) -> &str {
        match self {
            Text(text) => text,
            _ => "",
        }
    }

    fn is_off(&self) -> bool {
        matches!(self, Nothing) || matches!(self, Number(v) if *v == 0.0)
    }
}

fn sigmoid(z: f64) -> f64 {
    1.0 / (1.0 + (-z).exp())
}

fn printed(name: &str, shape: &[usize], data: &[f64]) -> String {
    let numbers: Vec<String> =
        data.iter().map(|v| if v.is_finite() { format!("{v:?}") } else { format!("\"{}\"", v.to_string().to_lowercase()) }).collect();
    format!("\"{name}\": {{\"shape\": {shape:?}, \"data\": [{}]}}", numbers.join(", "))
}

fn answer(question: &Value) -> String {
    let (config, arrays) = (question.get("config"), question.get("arrays"));
    let known = ["input_size", "hidden_size", "bias", "reverse", "lengths"];
    let Object(options) = config else { return "{\"error\": \"no config\"}".into() };
    let strange = options.iter().find(|(name, value)| !value.is_off() && !known.contains(&name.as_str()));
    if question.get("op").text() != "layer" || question.get("dtype").text() != "float64" || config.get("bias").is_off() {
        return "{\"unsupported\": \"one layer in float64 with biases is all there is\"}".into();
    }
    if let Some((name, _)) = strange {
        return format!("{{\"unsupported\": \"{name}\"}}");
    }
    let size = |name: &str| config.get(name).number() as usize;
    let (inputs, units) = (size("input_size"), size("hidden_size"));
    let x_shape = arrays.get("x").get("shape").numbers();
    let (steps, batch) = (x_shape[0] as usize, x_shape[1] as usize);
    let shapes: [(&str, Vec<usize>); 7] = [
        ("x", vec![steps, batch, inputs]),
        ("weight_ih", vec![4 * units, inputs]),
        ("weight_hh", vec![4 * units, units]),
        ("bias_ih", vec![4 * units]),
        ("bias_hh", vec![4 * units]),
        ("h_0", vec![batch, units]),
        ("c_0", vec![batch, units]),
    ];
    for (name, expected) in &shapes {
        let given: Vec<usize> = arrays.get(name).get("shape").numbers().iter().map(|n| *n as usize).collect();
        if &given != expected || matches!(arrays.get(name), Nothing) {
            return format!("{{\"refused\": \"shape\", \"message\": \"{name} is {given:?}, expected {expected:?}\"}}");
        }
    }
    let given = config.get("lengths");
    let lengths = if let List(_) = given { given.numbers() } else { vec![steps as f64; batch] };
    if lengths.len() != batch {
        return format!("{{\"refused\": \"shape\", \"message\": \"{} lengths for {batch} entries\"}}", lengths.len());
    }
    if let Some(n) = lengths.iter().find(|n| **n < 0.0 || **n > steps as f64) {
        return format!("{{\"refused\": \"other\", \"message\": \"length {n} is not in 0 to {steps}\"}}");
    }
    let read = |name: &str| arrays.get(name).get("data").numbers();
    let (x, of_x, of_h, b_ih, b_hh) = (read("x"), read("weight_ih"), read("weight_hh"), read("bias_ih"), read("bias_hh"));
    let (mut h, mut c, mut y) = (read("h_0"), read("c_0"), vec![0.0; steps * batch * units]);
    for b in 0..batch {
        let here = lengths[b] as usize;
        for n in 0..here {
            let t = if config.get("reverse").is_off() { n } else { here - 1 - n };
            let input = &x[(t * batch + b) * inputs..][..inputs];
            let state = h[b * units..][..units].to_vec();
            let z: Vec<f64> = (0..4 * units)
                .map(|row| {
                    let first: f64 = input.iter().zip(&of_x[row * inputs..]).map(|(v, w)| v * w).sum();
                    let second: f64 = state.iter().zip(&of_h[row * units..]).map(|(v, w)| v * w).sum();
                    first + second + b_ih[row] + b_hh[row]
                })
                .collect();
            for k in 0..units {
                let cell = &mut c[b * units + k];
                *cell = sigmoid(z[units + k]) * *cell + sigmoid(z[k]) * z[2 * units + k].tanh();
                h[b * units + k] = sigmoid(z[3 * units + k]) * cell.tanh();
                y[(t * batch + b) * units + k] = h[b * units + k];
            }
        }
    }
    let results = [
        printed("y", &[steps, batch, units], &y),
        printed("h_n", &[batch, units], &h),
        printed("c_n", &[batch, units], &c),
    ];
    format!("{{\"arrays\": {{{}}}}}", results.join(", "))
}

fn main() {
    let mut output = io::stdout();
    for line in io::stdin().lock().lines() {
        let line = line.unwrap();
        let question = Parser { text: line.as_bytes(), at: 0 }.value();
        writeln!(output, "{}", answer(&question)).unwrap();
        output.flush().unwrap();
    }
}
