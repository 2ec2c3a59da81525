"""The vocabulary of random tools: actions, objects, arguments, and the words of their values.

Each action and argument has several wordings, so that a schema and a question about it differ in
their words. Objects belong to one split each: a held-out tool deals with things that no trained
tool deals with.
"""

import re

# Each is a list of wordings of one action; the first word of a wording is a verb.
ACTIONS = (
    ("create", "add", "set up", "make"),
    ("delete", "remove", "drop"),
    ("find", "look up", "search for"),
    ("send", "deliver", "forward"),
    ("update", "change", "edit"),
    ("list", "show", "display"),
    ("book", "reserve"),
    ("cancel", "call off"),
    ("schedule", "plan", "arrange"),
    ("order", "buy", "purchase"),
    ("rate", "score", "grade"),
    ("start", "launch", "begin"),
    ("stop", "end", "halt"),
    ("check", "inspect", "verify"),
    ("archive", "file away"),
    ("copy", "duplicate"),
    ("move", "transfer", "shift"),
    ("assign", "allocate"),
    ("share", "publish"),
    ("measure", "gauge"),
    ("lock", "freeze"),
    ("count", "tally"),
    ("repair", "fix", "mend"),
    ("print", "type out"),
    ("pay", "settle"),
    ("translate", "render"),
    ("compare", "contrast"),
    ("estimate", "work out", "calculate"),
    ("record", "log", "note down"),
    ("sort", "rank", "put in order"),
)
OBJECTS = (
    "invoice", "ticket", "parcel", "meeting", "playlist", "recipe", "backup", "contract", "loan",
    "appointment", "flight", "hotel room", "article", "survey", "lesson", "server", "database",
    "sensor", "camera", "robot", "garden", "aquarium", "vehicle", "bicycle", "train", "ferry",
    "museum tour", "concert", "lecture", "library book", "photo album", "podcast", "newsletter",
    "customer account", "bank transfer", "tax return", "insurance claim", "prescription", "vaccine",
    "patient file", "blood test", "gym class", "football match", "chess game", "tournament",
    "crossword", "weather station", "satellite", "telescope", "microscope", "printer", "scanner",
    "thermostat", "lamp", "curtain", "door lock", "alarm", "vacuum cleaner", "oven", "freezer",
    "coffee machine", "dishwasher", "elevator", "crane", "warehouse", "shelf", "pallet", "truck",
    "container ship", "harbour berth", "runway", "parking space", "toll", "traffic light", "bridge",
    "tunnel", "power plant", "wind turbine", "solar panel", "battery", "water tank", "pipeline",
    "irrigation pump", "greenhouse", "harvest", "orchard", "vineyard", "cattle herd", "beehive",
    "fishing net", "forest plot", "nature trail", "campsite", "mountain hut", "ski pass",
    "surf board",
    "kayak", "climbing route", "marathon", "swimming lane", "dance class", "theatre play", "film",
    "screenplay", "novel", "poem", "dictionary", "glossary", "map", "atlas", "globe", "coin",
    "stamp", "painting", "sculpture", "violin", "piano", "choir", "orchestra", "radio show",
    "television channel", "mailbox", "phone line", "video call", "chat room", "forum thread",
    "wiki page", "blog post", "comment", "poll", "petition", "election", "law", "permit",
    "passport",
    "visa", "licence", "diploma", "exam", "homework", "timetable", "classroom", "laboratory",
    "experiment", "chemical sample", "gene sequence", "protein", "fossil", "mineral", "crystal",
    "spacecraft", "rocket", "drone", "submarine", "lighthouse", "compass", "clock", "calendar",
    "reminder", "shopping list", "grocery basket", "voucher", "discount", "gift card",
    "subscription",
    "membership", "donation", "budget", "salary slip", "pension", "stock portfolio", "bond",
    "mortgage", "rental flat", "building site", "blueprint", "tool box", "spare part", "engine",
    "gearbox", "wheel", "brake", "windscreen", "paint job", "carpet", "sofa", "wardrobe", "mirror",
    "necklace", "jacket", "shoe", "uniform", "costume", "haircut", "massage", "menu",
    "dinner table",
    "picnic", "wedding", "birthday party", "holiday", "pilgrimage", "safari",
)  # fmt: skip
MODIFIERS = (
    "", "", "", "", "new", "shared", "monthly", "private", "urgent", "public", "remote", "local",
    "regular", "special", "weekly", "digital", "old", "small", "large", "main",
)  # fmt: skip
# kind of value -> arguments of that kind, each as a list of wordings.
ARGUMENTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "integer": (
        ("count", "number of items", "quantity"), ("limit", "maximum", "upper limit"),
        ("priority", "rank"), ("floor", "level"), ("seats", "number of seats"),
        ("code", "number"), ("year of issue", "year"), ("weight in grams", "weight"),
    ),
    "number": (
        ("price", "cost", "amount"), ("height", "elevation"), ("rate", "ratio"),
        ("temperature", "degrees"), ("distance", "length in km"), ("latitude",
        "latitude in degrees"),
    ),
    "date": (("date", "day"), ("start date", "first day"), ("due date", "deadline"), ("end date",
    "last day")),
    "time": (("time", "hour"), ("start time", "beginning"), ("closing time", "end time")),
    "identifier": (
        ("id", "identifier"), ("reference", "reference number"), ("serial number", "serial"),
        ("order id", "order number"), ("customer id", "customer number"), ("tag", "label code"),
    ),
    "quoted": (("title", "heading"), ("message", "text"), ("note", "remark"), ("description",
    "summary")),
    "place": (("city", "town"), ("destination", "target city"), ("origin", "city of departure"),
    ("location", "site")),
    "person": (("owner", "holder"), ("name", "full name"), ("contact", "contact person"), ("author",
    "writer")),
    "email": (("email", "email address"), ("recipient", "address of the recipient")),
    "path": (("file", "path"), ("attachment", "attached file")),
    "term": (("topic", "subject"), ("keyword", "search term"), ("material", "substance"),
    ("category", "group")),
    "boolean": (("urgent", "urgency flag"), ("notify", "send a notice"), ("dry run", "test only"),
    ("private", "hidden")),
    "integers": (("ids", "numbers"), ("pages", "page numbers"), ("values", "measurements")),
    "terms": (("tags", "labels"), ("topics", "subjects"), ("colours", "shades")),
}  # fmt: skip
ENUMS = (
    (("unit", "unit of measure"), ("metric", "imperial")),
    (("size", "format size"), ("small", "medium", "large")),
    (("colour", "shade"), ("red", "green", "blue", "black", "white")),
    (("status", "state"), ("open", "pending", "closed")),
    (("format", "file format"), ("pdf", "csv", "json", "html")),
    (("currency", "money"), ("EUR", "USD", "GBP", "JPY", "CHF")),
    (("language", "tongue"), ("English", "German", "Spanish", "Hindi")),
    (("mode", "way of working"), ("fast", "balanced", "thorough")),
    (("order", "direction"), ("ascending", "descending")),
    (("season", "time of year"), ("spring", "summer", "autumn", "winter")),
)
# An object's argument, and the arguments inside it with their types.
OBJECT_ARGUMENTS = (
    (("address", "postal address"), (("street", "string"), ("city", "string"), ("zip", "integer"))),
    (("range", "span"), (("low", "integer"), ("high", "integer"))),
    (("position", "coordinates"), (("x", "number"), ("y", "number"))),
    (("contact details", "contact"), (("name", "string"), ("email", "string"))),
)
PLACES = (
    "Paris", "Lima", "Oslo", "Nairobi", "Kyoto", "Toronto", "Cairo", "Prague", "Mumbai", "Boston",
    "Seville", "Hanoi", "Perth", "Quito", "Riga", "Denver", "Porto", "Athens", "Dakar", "Zagreb",
    "New York", "Buenos Aires", "Cape Town", "San Diego", "Hong Kong", "Tel Aviv", "Berlin",
    "London",
    "Madrid", "Rome", "Vienna", "Tokyo", "Sydney", "Dublin", "Warsaw", "Lisbon", "Chicago", "Delhi",
)  # fmt: skip
PEOPLE = (
    "Maria", "Ahmed", "Ingrid", "Chen", "Olga", "Pedro", "Amina", "Lucas", "Yuki", "Sofia", "Tomas",
    "Priya", "Noah", "Fatima", "Emil", "Grace", "Ravi", "Hanna", "Diego", "Nora", "Ivan", "Leila",
    "Anna", "James", "Laura", "Peter", "Susan", "Omar", "Julia", "Karl",
)  # fmt: skip
SURNAMES = (
    "Lopez", "Okafor", "Larsen", "Wei", "Petrov", "Silva", "Haddad", "Moreau", "Tanaka", "Rossi",
    "Novak", "Sharma", "Miller", "Khan", "Berg", "Owens", "Patel", "Weber", "Cruz", "Lind",
)  # fmt: skip
SYLLABLES = (
    "mor", "val", "tar", "sko", "lin", "der", "fa", "bri", "ton", "ex", "ul", "ren", "go", "shi",
    "kam", "pel", "ost", "zu", "ner", "wick",
)  # fmt: skip
PLAIN = (
    "river", "silver", "lantern", "winter", "garden", "copper", "meadow", "engine", "harbor",
    "velvet",
    "north", "bright", "paper", "stone", "orange", "signal", "market", "bridge", "quiet", "summer",
    "window", "castle", "thunder", "ribbon", "forest", "mirror", "planet", "basket", "candle",
    "pepper",
    "violet", "report", "island", "cotton", "travel", "budget", "coffee", "history", "science",
    "harvest",
    "health", "energy", "school", "animal", "ocean", "football", "novel", "letter", "morning",
    "people",
)  # fmt: skip
# Names that arguments of a user's tools often take: a word of the argument's name -> values.
POOLS: dict[str, tuple[str, ...]] = {
    "currency": ("EUR", "USD", "GBP", "JPY", "CHF", "INR", "CAD", "AUD", "SEK", "BRL"),
    "language": ("English", "German", "Spanish", "French", "Hindi", "Italian", "Polish", "Dutch"),
    "country": ("France", "Peru", "Norway", "Kenya", "Japan", "Canada", "Egypt", "India", "Chile"),
    "unit": ("km", "miles", "meters", "feet", "kg", "pounds", "celsius", "fahrenheit", "liters"),
    "color": ("red", "green", "blue", "black", "white", "yellow", "purple"),
    "ticker": ("AAPL", "MSFT", "NVDA", "TSLA", "AMZN", "GOOG", "IBM", "SAP"),
}
# A word of a number's name -> units that people write behind it, where no argument holds the unit.
UNITS: dict[str, tuple[str, ...]] = {
    "weight": ("kg",), "mass": ("kg",), "height": ("m", "cm"), "length": ("m", "cm"),
    "width": ("m", "cm"), "distance": ("km", "miles"), "radius": ("m", "cm"), "speed": ("km/h",),
    "temperature": ("degrees",), "price": ("dollars", "euros"), "amount": ("dollars", "euros"),
    "cost": ("dollars",), "salary": ("dollars",), "bill": ("dollars",), "percent": ("%", "percent"),
    "percentage": ("%", "percent"), "rate": ("%", "percent"), "tip": ("%",), "age": ("years",),
    "years": ("years",), "minutes": ("minutes",), "hours": ("hours",), "days": ("days",),
    "seconds": ("seconds",), "duration": ("minutes", "hours"),
}  # fmt: skip
# A unit in a description -> how people write it behind a number.
SPOKEN_UNITS: dict[str, tuple[str, ...]] = {
    "kilograms": ("kg", "kilos"), "kg": ("kg", "kilos"), "pounds": ("pounds", "lbs"),
    "meters": ("m", "meters"), "centimeters": ("cm",), "cm": ("cm",), "kilometers": ("km",),
    "km": ("km", "kilometers"), "miles": ("miles",), "celsius": ("degrees", "°C"),
    "dollars": ("dollars",), "euros": ("euros",), "liters": ("liters", "l"), "hours": ("hours",),
    "minutes": ("minutes",), "seconds": ("seconds",), "days": ("days",), "percent": ("%", "percent"),
}  # fmt: skip
# Other words that name a pool.
ALSO = {
    "currencies": "currency", "lang": "language", "units": "unit", "colour": "color",
    "stock": "ticker", "symbol": "ticker", "nation": "country",
}  # fmt: skip
# Words in an argument's name or description -> the kind of its values.
FORMATS = {"date": "date", "time": "time", "email": "email", "uri": "link", "uuid": "identifier"}
CUES = {
    "email": ("email", "mail", "recipient"),
    "date": ("date", "day", "deadline", "birthday"),
    "time": ("time", "hour"),
    "link": ("url", "link", "uri", "website"),
    "path": ("path", "file", "filename", "filepath"),
    "identifier": ("id", "identifier", "code", "reference", "serial", "sku", "key"),
    "place": ("city", "place", "location", "town", "destination", "origin", "address"),
    "given": ("first", "firstname", "forename"),
    "surname": ("last", "lastname", "surname"),
    "person": ("person", "author", "owner", "user", "customer", "username", "contact", "who",
    "name"),
    "quoted": ("message", "text", "title", "body", "note", "content", "sentence", "description",
    "comment"),
}  # fmt: skip
# Words in the names of what is converted from and to.
SOURCES = frozenset(("from", "source", "base", "old", "input"))
TARGETS = frozenset(("to", "target", "into", "new", "output", "destination"))
# First words of names that say what a tool does.
VERBS = frozenset(
    wording.partition(" ")[0] for wordings in ACTIONS for wording in wordings
) | frozenset((
    "get", "set", "compute", "calculate", "convert", "fetch", "retrieve", "return", "determine",
    "look", "lookup", "tell", "give", "read", "write", "check", "search", "split", "run", "open",
    "close", "turn", "play", "save", "load", "store", "remove", "reset", "replace", "reverse",
    "validate", "generate", "query", "post", "put", "summarize", "draw", "remind", "turn", "wipe",
    "is", "has", "can",
))  # fmt: skip


def split_words(text: str) -> list[str]:
    """Return the words of a name or text in lower case: snake_case, camelCase and dots come
    apart.
    """
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", text)
    return re.findall(r"[a-z0-9]+", text.lower())
