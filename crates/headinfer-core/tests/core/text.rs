//! The tokenizer of the small trained model that lies beside some checkouts, on text it has not seen.

use headinfer_core::model::config::load_config;
use headinfer_core::text::Tokenizer;
use safetensors::SafeTensors;

use crate::run::shared;

/// The text begins with the ids that its file of ids begins with: those of the first file in it, after the BOS
/// token. What comes near the cut may be other tokens, so the last ones are not compared.
#[test]
fn the_trained_model_s_tokenizer_gives_the_ids_it_was_trained_on() {
    let folder = ["models/code-22m", "texts/heldout.txt", "texts/heldout-ids.safetensors"].map(shared);
    let [Some(dir), Some(text), Some(ids)] = folder else { return };
    let tokenizer = Tokenizer::load(&dir, &load_config(&dir).expect("config.json reads")).expect("loads");
    let whole = std::fs::read_to_string(text).expect("text reads");
    let file = std::fs::read(ids).expect("ids read");
    let file = SafeTensors::deserialize(&file).expect("ids parse");
    let expected = file.tensor("ids").expect("ids").data().as_chunks::<4>().0.to_vec();
    let expected: Vec<u32> = expected.into_iter().map(u32::from_le_bytes).collect();

    let text = &whole[..whole.floor_char_boundary(100_000)];
    let found = tokenizer.encode(text).expect("encodes");
    let same = found.iter().zip(&expected).take_while(|(a, b)| a == b).count();
    eprintln!("{} tokens, the first {same} of {} as in the file", found.len(), expected.len());
    assert!(same + 8 >= found.len(), "only {same} of {} agree", found.len());
    assert_eq!(tokenizer.decode(&found), text);
    let mut detokenizer = tokenizer.detokenizer();
    let mut pieces: String = found.iter().map(|&id| detokenizer.push(id)).collect();
    pieces.push_str(&detokenizer.finish());
    assert_eq!(pieces, text);

    // Long enough to be cut, and then the same as whole: piece by piece the text is that of the file.
    let all = tokenizer.encode(&whole).expect("encodes");
    assert_eq!(tokenizer.decode(&all), whole);
}
