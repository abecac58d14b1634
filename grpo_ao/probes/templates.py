"""Question templates of the benchmarks, where a data folder does not bring its own.

``{}`` stands for the label or the entity that is asked for. A benchmark whose labels take
sentences of their own has one list for each label.
"""

from collections.abc import Mapping, Sequence

Templates = Sequence[str] | Mapping[str, Sequence[str]]

_TRUTH = (
    "Does the statement hold?",
    "Is what the sentence says correct?",
    "Would a well-informed reader accept this sentence as a fact?",
    "Is the claim that is made here accurate?",
    "Does this sentence state something that is the case?",
    "Is the sentence free of factual error?",
    "Would an encyclopedia agree with this sentence?",
    "Is that so?",
)

TEMPLATES: dict[str, Templates] = {
    "geometry_of_truth": _TRUTH,
    "relations": _TRUTH,
    "sst2": (
        "Does the reviewer take a {} view of the film?",
        "Is the opinion that is voiced here {}?",
        "Would you call the writer's verdict {}?",
        "Does a {} judgement speak from this excerpt?",
        "Is the attitude towards the movie {}?",
        "Would a reader sum this remark up as {}?",
        "Is {} the right word for the sentiment of this passage?",
    ),
    "md_gender": (
        "Is the person who is described here {}?",
        "Is somebody {} the subject of the text?",
        "Would you say that the person in question is {}?",
        "Does the passage deal with someone who is {}?",
        "Is {} the gender of the person in the text?",
        "Going by the text, is its subject {}?",
        "Does the description fit a {} person?",
    ),
    "snli": (
        "Does the following sentence follow from the text? {}",
        "Given the text, is this so? {}",
        "Is the text in agreement with this sentence? {}",
        "Can the reader conclude the following? {}",
        "If the text is true, is this true as well? {}",
        "Do the text and this sentence describe the same scene without contradiction? {}",
    ),
    "ag_news": (
        "Is the story filed under {}?",
        "Would an editor put this item in the section {}?",
        "Is {} the subject area of this report?",
        "Is the news item one of {}?",
        "Would a reader look for this piece under {}?",
        "Does the report belong to {}?",
    ),
    "ner": (
        "Does {} occur in the sentence?",
        "Is {} named in the text?",
        "Can one read of {} in this sentence?",
        "Is there a mention of {}?",
        "Does the writer name {}?",
        "Among the names in the sentence, is there {}?",
    ),
    "tense": (
        "Is the verb of the sentence in the {}?",
        "Does the sentence speak of the {}?",
        "Is {} the grammatical tense of this sentence?",
        "Does what is told lie in the {}?",
        "Would a grammar book label this sentence {} tense?",
        "Is the sentence told in the {} tense?",
    ),
    "singular_plural": {
        "single": (
            "Does the sentence have one subject only?",
            "Is exactly one person or thing the subject?",
            "Is a single person or thing spoken of as the subject?",
            "Is the subject one individual and no group?",
        ),
        "multiple": (
            "Does the sentence have several subjects?",
            "Is more than one person or thing the subject?",
            "Are two or more persons or things spoken of as the subject?",
            "Is the subject a group and no single individual?",
        ),
    },
}
