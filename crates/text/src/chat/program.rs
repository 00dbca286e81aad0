//! A template as a program that measures what it builds.
//!
//! The engine has no hook between its steps, so its program is changed: behind every instruction that
//! makes a value stands a filter that measures it, before the few whose result may be far larger than
//! their operands one that refuses it in time, and text of the template is printed by the instruction
//! for values, which the formatter counts. This uses what `minijinja` calls its machinery: parser,
//! program and machine.
//!
//! The engine computes products of constants while it translates, before anything can measure them.
//! `a * b` is therefore read as `a * one * b` with a variable, whose value is 1.

use std::collections::BTreeMap;

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Span, Token, Vm, WhitespaceConfig,
    make_string_output, parse, tokenize,
};
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, Error, State};

use super::growth;
use super::meter::Meter;

/// Filters that the program calls.
const ADMIT: &str = "danaus_admit";
const ADMIT_ATTRIBUTE: &str = "danaus_admit_attribute";
const ADMIT_PRODUCT: &str = "danaus_admit_product";
/// The variable that is 1.
pub(super) const ONE: &str = "danaus_one";
/// The number of a filter that the engine does not remember.
const FORGOTTEN: u8 = u8::MAX;

/// Adds the filters that programs call.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter(ADMIT, |state: &State, value: Value| Meter::of(state).admit(value));
    // Two operands come back as the list that `UnpackList` puts on the stack as they were.
    environment.add_filter(ADMIT_ATTRIBUTE, |state: &State, value: Value, owner: Value| {
        Meter::of(state).admit_attribute(&value, &owner)?;
        Ok::<_, Error>(Value::from(vec![owner, value]))
    });
    environment.add_filter(ADMIT_PRODUCT, |state: &State, left: Value, right: Value| {
        growth::multiplied(&Meter::of(state), &left, &right)?;
        Ok::<_, Error>(Value::from(vec![right, left]))
    });
    environment.add_global(ONE, 1);
}

/// How blocks swallow the white space around them: as the `transformers` library says.
fn white_space() -> WhitespaceConfig {
    WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true }
}

/// The source with constant products taken apart; an error where it is malformed.
pub(super) fn prepare(name: &str, source: &str) -> Result<String, Error> {
    let mut result = String::with_capacity(source.len());
    let mut copied = 0;
    let mut operand = false;
    for token in tokenize(source, false, Default::default(), white_space()) {
        let (token, Span { end_offset, .. }) = token?;
        // A star without a left operand spreads arguments.
        if matches!(token, Token::Mul) && operand {
            let end = end_offset as usize;
            result.push_str(&source[copied..end]);
            result.push_str(&format!(" {ONE} *"));
            copied = end;
        }
        operand = !matches!(token, Token::ParenOpen | Token::Comma);
    }
    result.push_str(&source[copied..]);
    parse(&result, name, Default::default(), white_space())?;
    Ok(result)
}

/// Renders a prepared source.
pub(super) fn render(
    environment: &Environment<'_>,
    (name, source): (&str, &str),
    context: Value,
) -> Result<String, Error> {
    let tree = parse(source, name, Default::default(), white_space())?;
    let mut generator = CodeGenerator::new(name, source);
    generator.compile_stmt(&tree);
    let (program, blocks) = generator.finish();
    let program = metered(&program);
    let blocks: BTreeMap<_, _> =
        blocks.iter().map(|(name, block)| (*name, metered(block))).collect();
    let mut text = String::new();
    let mut output = make_string_output(&mut text);
    let machine = Vm::new(environment);
    machine.eval(&program, context, &blocks, &mut output, AutoEscape::None)?;
    Ok(text)
}

/// A program with measurements.
fn metered<'a>(program: &Instructions<'a>) -> Instructions<'a> {
    let old = || (0..).map_while(|at| Some((at, program.get(at)?)));
    let mut starts = Vec::with_capacity(program.len() + 1);
    let mut length = 0;
    for (_, instruction) in old() {
        starts.push(length);
        length += replacement(instruction).len() as u32;
    }
    // Jumps may lead behind the last instruction.
    starts.push(length);
    let mut result = Instructions::new(program.name(), program.source());
    for (at, instruction) in old() {
        let line = program.get_line(at).unwrap_or(1).min(usize::from(u16::MAX)) as u16;
        for mut instruction in replacement(instruction) {
            match &mut instruction {
                Instruction::Iterate(target)
                | Instruction::Jump(target)
                | Instruction::JumpIfFalse(target)
                | Instruction::JumpIfFalseOrPop(target)
                | Instruction::JumpIfTrueOrPop(target)
                | Instruction::BuildMacro(_, target, _) => *target = starts[*target as usize],
                _ => {}
            }
            result.add_with_line(instruction, line);
        }
    }
    result
}

/// What stands for an instruction.
fn replacement<'a>(instruction: &Instruction<'a>) -> Vec<Instruction<'a>> {
    let filter = |name, operands| Instruction::ApplyFilter(name, Some(operands), FORGOTTEN);
    let before = |name| [filter(name, 2), Instruction::UnpackList(2), instruction.clone()];
    match instruction {
        Instruction::EmitRaw(text) => {
            vec![Instruction::LoadConst(Value::from(*text)), Instruction::Emit]
        }
        Instruction::SetAttr(_) => before(ADMIT_ATTRIBUTE).to_vec(),
        Instruction::Mul => {
            let mut all = before(ADMIT_PRODUCT).to_vec();
            all.push(filter(ADMIT, 1));
            all
        }
        Instruction::Add
        | Instruction::StringConcat
        | Instruction::Slice
        | Instruction::BuildList(_)
        | Instruction::BuildMap(_)
        | Instruction::ApplyFilter(..)
        | Instruction::CallFunction(..)
        | Instruction::CallMethod(..)
        | Instruction::CallObject(_)
        | Instruction::EndCapture => vec![instruction.clone(), filter(ADMIT, 1)],
        other => vec![other.clone()],
    }
}
