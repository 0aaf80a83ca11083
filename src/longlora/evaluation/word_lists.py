"""Word lists for questions and filler."""

ADJECTIVES = (
    "amber azure bitter brave bright broken calm clever copper crimson curious distant eager early faded fancy final "
    "frozen gentle giant golden hidden hollow humble icy ivory jolly lonely lucky marble mellow misty noble olive "
    "patient plain proud purple quick quiet rapid rusty scarlet silent silver simple slender smooth solid sturdy sunny "
    "tender tidy tiny velvet violet wandering wild wooden young"
).split()
NOUNS = (
    "acorn anchor apple badger barrel beacon bridge brook button candle canyon castle cedar cloud comet coral cottage "
    "cricket drum falcon feather fern forest fountain garden glacier harbor hammer heron island kettle lantern ladder "
    "lake lion maple meadow mirror mountain needle orchard otter owl parrot pebble pepper piano planet raven river "
    "rocket saddle sparrow temple tiger tunnel turtle valley violin willow window"
).split()
PEOPLE = (
    "the baker|the teacher|an old sailor|my neighbour|the two sisters|a young doctor|the gardener|her uncle|the driver|"
    "a stranger|the mayor|the children|his brother|the miller|an engineer|the librarian|a painter|the shepherd"
).split("|")
ACTIONS = (
    "walked slowly|waited for an hour|spoke about the weather|told a long story|bought some bread|wrote a letter|"
    "looked at the sky|mended the fence|sang an old song|read the newspaper|drank a cup of tea|played chess|"
    "carried a heavy box|counted the boats|fell asleep|painted a chair|asked for directions|laughed out loud"
).split("|")
PLACES = (
    "near the station|beside the church|in the market|on the hill|by the river|behind the school|under the trees|"
    "at the harbour|in the kitchen|across the road|at the edge of the village|in front of the theatre|on the terrace"
).split("|")
TIMES = (
    "in the morning|after lunch|before the rain began|at dusk|on Sunday|late at night|all afternoon|for the first time|"
    "once again|as usual|in early spring|when the bells rang"
).split("|")
ASPECTS = (
    "the history of|the economics of|the art of|the science of|the future of|the psychology of|the geography of|"
    "famous mistakes in|common myths about|the language of|the ethics of|the mathematics of|the music of|"
    "the tools of|the customs of|the dangers of|the beginnings of|the decline of|the laws of|the poetry of"
).split("|")
SUBJECTS = (
    "lighthouses|beekeeping|mountain climbing|tea|railways|gardening|chess|glass making|sailing|astronomy|bread|"
    "cinema|volcanoes|bicycles|carpentry|deserts|migration|photography|printing|rainforests|silk|telegraphy|theatre|"
    "weaving|whales|winter sports|bridges|clocks|coins|coral reefs|dance|dreams|fashion|fishing|folk tales|fossils|"
    "glaciers|horses|insects|islands|kites|languages|magic tricks|maps|markets|mirrors|museums|olive trees|opera|"
    "paper|perfume|pottery|rivers|salt|schools|ships|spices|toys|universities|wheat"
).split("|")
TOPICS = [f"{aspect} {subject}" for aspect in ASPECTS for subject in SUBJECTS]
TURNS = (
    ("What should a beginner know about it?", "Start with what is easy to see, and ask the rest later."),
    ("Why does it matter to people today?", "It shapes daily life more than most people think."),
    ("Is there a book that you would recommend?", "There are several, and the older ones are still the clearest."),
    ("What do experts disagree about?", "Mostly about causes, and about how much of the evidence can be trusted."),
    ("How has it changed over time?", "Slowly at first, and then all at once when new methods became cheap."),
    ("Where in the world can one see it best?", "In many places, though the small ones are often the most rewarding."),
    ("What is the most surprising thing about it?", "That so much of it was found by chance and not by a plan."),
    ("Does it cost a lot to take part?", "Less than one would expect, if one is patient and borrows what one needs."),
    ("What is a mistake that many people make?", "They hurry, and so they miss what makes it worth the while."),
    ("Could you tell me a short story about it?", "A traveller once asked the same, and stayed for life."),
)

FIRST_NAMES = (
    "Adam Alice Anna Ben Carl Clara Daniel David Diana Emma Eric Eva Felix Frank George Grace Hanna Helen Henry Hugo "
    "Ida Ivan Jack James Jane John Julia Karl Laura Leo Linda Lucy Maria Mark Martin Mary Max Mia Nina Nora Olga Oscar "
    "Otto Paul Peter Rita Robert Rosa Ruth Sam Sara Simon Sofia Thomas Tina Tom Vera Victor Walter"
).split()
# A fact about a person and the question's description, with no word in common; most need a step of common knowledge.
ASSOCIATIONS = (
    ("lives right beside the Eiffel Tower", "has a home in France"),
    ("keeps bees behind the barn", "can offer us honey"),
    ("repairs shoes in a small shop", "is a cobbler"),
    ("swallows neither meat nor milk nor eggs", "is a vegan"),
    ("came into the world on the twenty-fifth of December", "has a birthday at Christmas"),
    ("flies passengers across the Atlantic", "is a pilot"),
    ("pulls rotten teeth for a living", "is a dentist"),
    ("walks past the Colosseum each day", "may be met in Rome"),
    ("moved to a flat that overlooks the Kremlin", "resides in Moscow"),
    ("performed the part of Carmen at the gala", "is an opera singer"),
    ("stitches wounds in the emergency room", "is a surgeon"),
    ("cleans the cages of lions and elephants", "has a job at a zoo"),
    ("hears nothing at all and speaks with both hands", "is deaf"),
    ("took a photograph of the Great Pyramid", "has been to Egypt"),
    ("owns a restaurant that faces the Acropolis", "runs a business in Athens"),
    ("smokes twenty cigarettes between two meals", "should fear for the lungs"),
    ("grew up within sight of Mount Fuji", "comes from Japan"),
    ("studies the rings of Saturn through a telescope", "is an astronomer"),
    ("gives injections to sick dogs and cats", "is a veterinarian"),
    ("defends the accused before the judge", "is a lawyer"),
    ("crossed the line of the marathon before all others", "won a race"),
    ("rides a gondola to work", "is at home in Venice"),
    ("trembles whenever a spider crawls by", "suffers from a phobia"),
    ("puts out burning roofs with a hose", "is a firefighter"),
)
