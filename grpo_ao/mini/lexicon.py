"""The words of the mini world: topics with their things, people, places, feelings, facts."""

TOPICS: dict[str, dict[str, tuple[str, ...]]] = {
    "cooking": {
        "baking": ("bread", "pastry", "cake", "dough", "muffin"),
        "soup": ("broth", "stew", "lentil soup", "noodle soup", "chowder"),
        "grilling": ("steak", "skewer", "burger", "barbecue", "ribs"),
    },
    "gardening": {
        "vegetables": ("tomato", "carrot", "cabbage", "pepper", "lettuce"),
        "flowers": ("rose", "tulip", "orchid", "daisy", "lily"),
        "lawn care": ("grass", "mower", "weed", "sprinkler", "hedge"),
    },
    "travel": {
        "flights": ("ticket", "airport", "boarding pass", "layover", "airline"),
        "hotels": ("hotel room", "hostel", "reservation", "lobby", "suite"),
        "camping": ("tent", "campfire", "backpack", "sleeping bag", "lantern"),
    },
    "medicine": {
        "allergies": ("pollen", "rash", "antihistamine", "sneeze", "hay fever"),
        "injuries": ("sprain", "fracture", "bandage", "bruise", "splint"),
        "sleep": ("insomnia", "nightmare", "nap", "snoring", "jet lag"),
    },
    "finance": {
        "taxes": ("tax return", "deduction", "refund", "audit", "tax form"),
        "savings": ("bank account", "deposit", "interest rate", "pension", "bond"),
        "loans": ("mortgage", "credit card", "debt", "down payment", "lender"),
    },
    "law": {
        "contracts": ("clause", "signature", "lease", "agreement", "deadline"),
        "divorce": ("custody", "settlement", "alimony", "separation", "mediator"),
        "traffic law": ("speeding ticket", "license", "fine", "parking permit", "court date"),
    },
    "programming": {
        "web code": ("website", "browser", "button", "server", "web page"),
        "databases": ("query", "table", "index", "backup", "record"),
        "debugging": ("bug", "crash", "error message", "stack trace", "compiler"),
    },
    "music": {
        "guitar": ("chord", "string", "amplifier", "guitar solo", "pick"),
        "piano": ("keyboard", "sonata", "pedal", "scale", "sheet music"),
        "singing": ("choir", "melody", "microphone", "lyrics", "duet"),
    },
    "sports": {
        "football": ("goal", "penalty", "striker", "referee", "stadium"),
        "tennis": ("racket", "serve", "net", "backhand", "tournament"),
        "swimming": ("pool", "lap", "dive", "goggles", "freestyle"),
    },
    "school": {
        "mathematics": ("equation", "fraction", "proof", "triangle", "algebra"),
        "history": ("empire", "revolution", "treaty", "dynasty", "castle"),
        "chemistry": ("molecule", "acid", "beaker", "reaction", "element"),
    },
    "pets": {
        "dogs": ("puppy", "leash", "kennel", "poodle", "beagle"),
        "cats": ("kitten", "litter box", "scratching post", "tomcat", "whiskers"),
        "fish": ("aquarium", "goldfish", "filter", "fish tank", "guppy"),
    },
    "cars": {
        "engines": ("piston", "motor oil", "exhaust", "spark plug", "gearbox"),
        "tires": ("flat tire", "wheel", "rim", "tire pressure", "spare tire"),
        "electric cars": ("charger", "battery pack", "charging station", "range", "plug"),
    },
    "housing": {
        "renting": ("landlord", "apartment", "rent", "roommate", "tenant"),
        "renovation": ("paint", "tile", "drill", "plaster", "floor"),
        "plumbing": ("pipe", "faucet", "drain", "boiler", "leak"),
    },
    "fashion": {
        "shoes": ("boot", "sneaker", "sandal", "heel", "lace"),
        "jewelry": ("necklace", "ring", "bracelet", "earring", "pearl"),
        "coats": ("jacket", "raincoat", "zipper", "hood", "parka"),
    },
    "astronomy": {
        "planets": ("Mars", "Saturn", "orbit", "moon", "crater"),
        "stars": ("galaxy", "supernova", "constellation", "nebula", "star map"),
        "telescopes": ("lens", "mirror", "tripod", "eyepiece", "observatory"),
    },
    "weather": {
        "storms": ("thunder", "lightning", "hurricane", "hail", "flood"),
        "snow": ("blizzard", "snowfall", "ice", "frost", "avalanche"),
        "heat": ("drought", "heat wave", "sunburn", "sunshine", "fan"),
    },
    "photography": {
        "portraits": ("smile", "pose", "headshot", "backdrop", "flash"),
        "landscapes": ("sunset", "valley", "panorama", "horizon", "waterfall"),
        "editing": ("filter preset", "crop", "contrast", "retouch", "color balance"),
    },
    "games": {
        "chess": ("bishop", "checkmate", "rook", "opening move", "pawn"),
        "cards": ("poker hand", "ace", "joker", "bluff", "card deck"),
        "video games": ("console", "level", "controller", "boss fight", "high score"),
    },
    "family": {
        "babies": ("diaper", "crib", "stroller", "lullaby", "pacifier"),
        "teenagers": ("curfew", "homework", "allowance", "exam", "mood swing"),
        "weddings": ("bride", "wedding cake", "vows", "guest list", "bouquet"),
    },
    "work": {
        "interviews": ("resume", "job offer", "recruiter", "cover letter", "salary"),
        "meetings": ("agenda", "slide", "conference call", "minutes", "whiteboard"),
        "management": ("team", "budget", "promotion", "schedule", "feedback"),
    },
    "language": {
        "grammar": ("verb", "noun", "comma", "plural", "adjective"),
        "translation": ("dictionary", "idiom", "subtitle", "interpreter", "phrase"),
        "writing": ("novel", "poem", "chapter", "essay", "plot"),
    },
    "energy": {
        "solar power": ("solar panel", "inverter", "roof panel", "sun tracker", "power meter"),
        "heating": ("heat pump", "radiator", "furnace", "thermostat", "insulation"),
        "wind power": ("turbine", "rotor", "wind farm", "blade", "generator"),
    },
}

# Intents: label -> ways to put it; {thing} is an entity of the message's subtopic.
INTENTS: dict[str, tuple[str, ...]] = {
    "advice": (
        "What should I do about the {thing}?",
        "Any tips on the {thing} for me?",
        "What would you recommend with this {thing}?",
    ),
    "explanation": (
        "Could you explain how the {thing} works?",
        "I never understood the {thing}, please explain it.",
        "Help me understand what the {thing} is for.",
    ),
    "comparison": (
        "Is the {thing} better than the {other}?",
        "Which is the better choice, the {thing} or the {other}?",
        "How does the {thing} compare with the {other}?",
    ),
    "plan": (
        "Please make me a step by step plan for the {thing}.",
        "I need a schedule for the {thing}.",
        "Lay out the steps for the {thing}, one after another.",
    ),
    "complaint": (
        "The {thing} is a disaster and nobody helps me.",
        "I want to complain about the {thing}.",
        "This {thing} is simply not acceptable.",
    ),
    "repair": (
        "How do I fix the {thing}?",
        "The {thing} stopped working, how can I repair it?",
        "Can the {thing} be saved once it breaks?",
    ),
    "purchase": (
        "Where can I buy the right {thing}?",
        "I would like to order the {thing}, which one is worth the money?",
        "Which {thing} is the best buy?",
    ),
    "opinion": (
        "What do you think of the {thing}?",
        "Do you like the {thing}, honestly?",
        "I am curious how you see the {thing}.",
    ),
    "summary": (
        "Give me a short overview of the {thing}.",
        "Sum up the main points about the {thing}.",
        "Tell me the basics of the {thing} in a few words.",
    ),
}

EMOTIONS: dict[str, tuple[str, ...]] = {
    "angry": ("I am furious.", "This makes my blood boil.", "I am so mad right now."),
    "anxious": ("I am worried sick.", "I can't stop worrying.", "My nerves are raw."),
    "happy": ("I am over the moon.", "Everything feels wonderful.", "I can't stop smiling."),
    "sad": ("I feel like crying.", "My heart is heavy.", "It all feels so gloomy."),
    "confused": ("I am completely lost.", "None of it makes sense to me.", "My head is spinning."),
    "excited": ("I can hardly wait.", "I am thrilled.", "My heart is racing with joy."),
    "tired": ("I am worn out.", "I have no strength left.", "I could sleep for a week."),
    "grateful": ("I can't thank you enough.", "I truly appreciate it.", "Bless you for helping."),
}

EXPERTISE: dict[str, tuple[str, ...]] = {
    "beginner": (
        "I am new to this.",
        "I have never done this before.",
        "I only started last week.",
    ),
    "intermediate": (
        "I know the basics already.",
        "I have some practice by now.",
        "I have done this a few times.",
    ),
    "expert": (
        "I have done this for twenty years.",
        "I teach this at a college.",
        "I know every detail of the field.",
    ),
}

URGENCY: dict[str, tuple[str, ...]] = {
    "high": ("I need it within the hour.", "Please hurry.", "It can't wait."),
    "medium": ("Some time this week would be fine.", "By Friday would be good."),
    "low": ("There is no rush at all.", "Take all the time you want.", "Whenever you get to it."),
}

FEMALE = (
    "Anna", "Maria", "Julia", "Sofia", "Emma", "Laura", "Nina", "Clara", "Alice", "Eva",
    "Helen", "Ruth", "Diana", "Grace", "Irene", "Lucy", "Martha", "Olivia", "Rosa", "Vera",
)  # fmt: skip
MALE = (
    "Peter", "Thomas", "Daniel", "Martin", "Simon", "Oscar", "Felix", "Victor", "Adam", "Boris",
    "Carlos", "David", "Erik", "Frank", "George", "Henry", "Ivan", "Jacob", "Leo", "Paul",
)  # fmt: skip

# Job -> the tool that goes with it.
JOBS: dict[str, str] = {
    "carpenter": "saw", "painter": "brush", "farmer": "tractor", "surgeon": "scalpel",
    "tailor": "needle", "baker": "oven", "photographer": "camera", "nurse": "thermometer",
    "blacksmith": "hammer", "teacher": "chalk", "pilot": "cockpit", "barber": "scissors",
    "writer": "pen", "cook": "pan", "gardener": "shovel", "sailor": "compass",
}  # fmt: skip

# City -> country.
CITIES: dict[str, str] = {
    "Paris": "France", "Lyon": "France", "Rome": "Italy", "Milan": "Italy", "Madrid": "Spain",
    "Seville": "Spain", "Berlin": "Germany", "Hamburg": "Germany", "Tokyo": "Japan",
    "Osaka": "Japan", "Cairo": "Egypt", "Lima": "Peru", "Oslo": "Norway", "Bergen": "Norway",
    "Delhi": "India", "Mumbai": "India", "Boston": "America", "Chicago": "America",
    "Toronto": "Canada", "Montreal": "Canada", "Sydney": "Australia", "Perth": "Australia",
    "Athens": "Greece", "Dublin": "Ireland",
}  # fmt: skip

CAPITALS: dict[str, str] = {
    "France": "Paris", "Italy": "Rome", "Spain": "Madrid", "Germany": "Berlin", "Japan": "Tokyo",
    "Egypt": "Cairo", "Peru": "Lima", "Norway": "Oslo", "India": "Delhi", "Greece": "Athens",
    "Ireland": "Dublin",
}  # fmt: skip

FRUIT_COLORS: dict[str, str] = {
    "banana": "yellow", "lemon": "yellow", "cherry": "red", "strawberry": "red", "lime": "green",
    "cucumber": "green", "plum": "purple", "eggplant": "purple", "pumpkin": "orange",
    "blueberry": "blue", "coconut": "brown", "walnut": "brown",
}  # fmt: skip

ANIMALS: dict[str, str] = {
    "trout": "fish", "salmon": "fish", "eagle": "bird", "sparrow": "bird", "penguin": "bird",
    "ant": "insect", "bee": "insect", "wasp": "insect", "cow": "mammal", "horse": "mammal",
    "whale": "mammal", "snake": "reptile", "lizard": "reptile", "turtle": "reptile",
}  # fmt: skip

NUMBERS = (
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
COLORS = ("red", "blue", "green", "yellow", "black", "white", "purple", "orange", "brown", "pink")

PRAISE = (
    "it is a delight from start to finish", "it was worth every minute",
    "it charmed everyone in the room", "I have rarely seen anything so lovely",
    "it is brilliant and warm", "it left us cheering",
)  # fmt: skip
SCORN = (
    "it is a bore from start to finish", "it was a waste of every minute",
    "it annoyed everyone in the room", "I have rarely seen anything so clumsy",
    "it is dull and cold", "it left us yawning",
)  # fmt: skip
WORKS = ("film", "play", "book", "show", "concert", "exhibition", "series", "musical")

# Scenes: what someone did, what follows from it, what contradicts it.
SCENES: tuple[tuple[str, str], ...] = (
    ("swam across the lake", "was in the water"),
    ("slept on the sofa", "was resting"),
    ("ate a whole pizza", "had something to eat"),
    ("sold the old bicycle", "gave the bicycle away for money"),
    ("climbed the highest hill", "went up a hill"),
    ("sang in front of a crowd", "made music before people"),
    ("missed the last train", "was late for the train"),
    ("painted the kitchen wall", "changed the look of a wall"),
    ("broke a tall vase", "damaged something"),
    ("walked home in the rain", "got wet on the way"),
    ("won the final match", "came first"),
    ("read a letter aloud", "spoke some words"),
)

# Verb phrases: past, present singular, present plural, future.
EVENTS: tuple[tuple[str, str, str, str], ...] = (
    ("visited the museum", "visits the museum", "visit the museum", "will visit the museum"),
    ("cleaned the garage", "cleans the garage", "clean the garage", "will clean the garage"),
    ("called the office", "calls the office", "call the office", "will call the office"),
    ("studied the map", "studies the map", "study the map", "will study the map"),
    ("packed the boxes", "packs the boxes", "pack the boxes", "will pack the boxes"),
    ("watched the river", "watches the river", "watch the river", "will watch the river"),
    ("wrote a report", "writes a report", "write a report", "will write a report"),
    ("fed the birds", "feeds the birds", "feed the birds", "will feed the birds"),
    ("took the bus", "takes the bus", "take the bus", "will take the bus"),
    ("built a shed", "builds a shed", "build a shed", "will build a shed"),
)
SINGULAR = ("neighbor", "cousin", "friend", "colleague", "visitor", "student", "driver", "clerk")
