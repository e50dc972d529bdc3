//! The tokenizer of the small trained model that lies beside some checkouts, on text it has not seen.

use headinfer_core::model::config::load_config;
use headinfer_core::text::Tokenizer;
use safetensors::SafeTensors;

use crate::run::shared;

/// The file of ids holds one document after the other, each between the BOS and the EOS token; the text has the
/// same documents, each under a line `# file N`.
#[test]
fn the_trained_model_s_tokenizer_gives_the_ids_it_was_trained_on() {
    let folder = ["models/code-22m", "texts/heldout.txt", "texts/heldout-ids.safetensors"].map(shared);
    let [Some(dir), Some(text), Some(ids)] = folder else { return };
    let tokenizer = Tokenizer::load(&dir, &load_config(&dir).expect("config.json reads")).expect("loads");
    let text = std::fs::read_to_string(text).expect("text reads");
    let file = std::fs::read(ids).expect("ids read");
    let file = SafeTensors::deserialize(&file).expect("ids parse");
    let expected = file.tensor("ids").expect("ids").data().as_chunks::<4>().0.to_vec();
    let expected: Vec<u32> = expected.into_iter().map(u32::from_le_bytes).collect();

    let (end, mut rest) = (tokenizer.end_tokens(), text.as_str());
    let documents: Vec<&[u32]> = expected.split(|id| end.contains(id)).filter(|d| !d.is_empty()).collect();
    assert_eq!(documents.len(), 97);
    for (i, ids) in documents.into_iter().enumerate() {
        let document = tokenizer.decode(ids);
        rest = rest.trim_start().strip_prefix(&format!("# file {}\n", i + 1)).expect("its line");
        rest = rest.strip_prefix(&document).expect("its text");
        assert_eq!(tokenizer.encode(&document).expect("encodes"), ids, "document {}", i + 1);
    }
    assert_eq!(rest.trim(), "");
}

#[test]
fn the_trained_model_s_text_comes_back_whole_and_in_pieces() {
    let (Some(dir), Some(text)) = (shared("models/code-22m"), shared("texts/heldout.txt")) else { return };
    let tokenizer = Tokenizer::load(&dir, &load_config(&dir).expect("config.json reads")).expect("loads");
    let text = std::fs::read_to_string(text).expect("text reads");
    let ids = tokenizer.encode(&text).expect("encodes");
    assert_eq!(tokenizer.decode(&ids), text);
    let mut detokenizer = tokenizer.detokenizer();
    let mut pieces: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
    pieces.push_str(&detokenizer.finish());
    assert_eq!(pieces, text);
}
