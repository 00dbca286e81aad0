//! Escaping, self-containedness and numbers of the page.

use super::*;

fn lines() -> Vec<Line> {
    let line = |step: u64| Line {
        step,
        loss: Some(6.0 - step as f64 * 0.01),
        lr: Some(1e-3),
        grad_norm: Some(1.0),
        tokens: 4096 * step,
        tokens_per_s: Some(20_000.0 + step as f64),
        seconds: step as f64 * 0.2,
        val_bits_per_byte: step.is_multiple_of(100).then_some(2.5),
        val_loss: step.is_multiple_of(100).then_some(5.0),
        ..Line::default()
    };
    (1..=300).map(line).collect()
}

fn report() -> Report {
    let row = |name: &str, value, is_ours| ResultRow { name: name.into(), value, is_ours };
    Report {
        measure: Measure::BitsPerByte,
        title: "Hybrid & <b>friends</b>".into(),
        summary: "Trained on 'source' text".into(),
        results: vec![row("gzip -9", 2.0, false), row("this model", 1.5, true)],
        samples: vec![Sample {
            kind: "completion".into(),
            prompt: "fn f<T>(".into(),
            output: "</pre><script>alert(\"x\")</script>\u{1}".into(),
            suffix: " && true".into(),
        }],
        settings: vec![("data".into(), "/tmp/<img src=x onerror=y>".into())],
    }
}

#[test]
fn hostile_texts_stay_texts() {
    let page = report().html(&lines());
    for raw in ["<script", "<img", "<b>", "f<T>", "\u{1}"] {
        assert!(!page.contains(raw), "{raw} is in the page");
    }
    for text in [
        "&lt;/pre&gt;&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;\u{fffd}",
        "Hybrid &amp; &lt;b&gt;friends&lt;/b&gt;",
        "fn f&lt;T&gt;(",
        " &amp;&amp; true",
        "&#39;source&#39;",
    ] {
        assert!(page.contains(text), "{text} is not in the page");
    }
}

#[test]
fn nothing_is_fetched() {
    let page = report().html(&lines());
    for outside in ["http:", "https:", "url(", "src=", "href=", "@import"] {
        let inside_text = page.matches(outside).count();
        // The only one is the escaped attempt in the settings.
        assert_eq!(inside_text, usize::from(outside == "src="), "{outside}");
    }
}

#[test]
fn tags_are_balanced() {
    let page = report().html(&lines());
    for tag in
        ["html", "body", "main", "section", "figure", "table", "tr", "svg", "pre", "div", "text"]
    {
        let opened =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert_eq!(page.matches("<svg").count(), 5);
}

#[test]
fn numbers_are_those_of_the_run() {
    let page = report().html(&lines());
    assert!(page.contains("<strong>300</strong><span>steps"));
    assert!(page.contains("<strong>1\u{2009}228\u{2009}800</strong><span>tokens"));
    assert!(page.contains("<strong>20\u{2009}151</strong><span>tokens/s (median)"));
    assert!(page.contains("<strong>2.500</strong><span>held-out bits per byte"));
    // The shortest bar comes first and is ours.
    let (ours, gzip) = (page.find("this model").unwrap(), page.find("gzip -9").unwrap());
    assert!(ours < gzip && page.contains("width:75.0%"));
}

#[test]
fn a_run_without_steps_has_a_page_too() {
    let page = Report::default().html(&[]);
    assert!(page.contains("<strong>0</strong><span>steps") && !page.contains("NaN"));
}
