"""Requests that a user's tools do not answer, as people make them, and how a question is dressed.

Many hold the same values as the questions that tools answer (a city, an amount, a date), so that a
value alone does not make a call. A request whose topic the tools name themselves is left out:
nobody knows whether those would answer it.
"""

import re
from collections.abc import Collection, Iterable

import numpy as np

from agent_forge.data.documents import split_of
from agent_forge.data.schemas import values, words
from agent_forge.data.schemas.values import pick

# Topics (words that must not occur in the tools), the request, and what is not possible.
REQUESTS = (
    (("weather", "forecast"), "What is the weather like in {place}?", "look up the weather"),
    (("weather", "rain", "forecast"), "Will it rain in {place} on {date}?", "look up the weather"),
    (("weather", "temperature"), "How warm is it in {place} right now?", "look up the weather"),
    (("news", "headline"), "What are today's headlines in {place}?", "look up the news"),
    (("alarm", "clock"), "Set an alarm for {time}.", "set an alarm"),
    (("reminder", "remind"), "Remind me at {time} to call {person}.", "set a reminder"),
    (("timer",), "Start a timer of {few} minutes.", "start a timer"),
    (("email", "mail", "message"), "Send an email to {person}.", "send an email"),
    (("message", "text", "sms"), "Text {person} that I am late.", "send a message"),
    (("call", "phone", "dial"), "Call {person} for me.", "make a phone call"),
    (("flight", "travel", "book"), "Book a flight from {place} to {place}.", "book a flight"),
    (("hotel", "room", "book"), "Find me a hotel in {place} for {few} nights.", "find a hotel"),
    (("train", "ticket"), "When does the next train to {place} leave?", "look up trains"),
    (("restaurant", "table", "book"), "Reserve a table for {few} at {time}.", "reserve a table"),
    (("restaurant", "food"), "Where can I eat well in {place}?", "look up restaurants"),
    (("distance", "far", "route"), "How far is it from {place} to {place}?", "look up distances"),
    (("route", "direction", "map"), "How do I get from {place} to {place}?", "look up routes"),
    (("population", "people", "inhabitant"), "How many people live in {place}?",
     "look up the population"),
    (("mayor",), "Who is the mayor of {place}?", "look up mayors"),
    (("time", "timezone", "zone", "clock"), "What time is it in {place}?", "look up the time"),
    (("house", "rent", "property"), "What does a flat in {place} cost?", "look up rents"),
    (("zip", "zipcode", "postal", "postcode"), "What is the postal code of {place}?",
     "look up postal codes"),
    (("airport",), "Which airport is nearest to {place}?", "look up airports"),
    (("museum", "sight", "attraction"), "Which sights are there in {place}?", "look up sights"),
    (("job", "work"), "Are there any jobs in {place}?", "look up jobs"),
    (("stock", "share", "ticker"), "What is the share price of {ticker}?", "look up share prices"),
    (("stock", "share", "trade"), "Buy {few} shares of {ticker}.", "buy shares"),
    (("bank", "account", "balance"), "What is the balance of my account?", "look at accounts"),
    (("bank", "transfer", "money", "pay"), "Transfer {amount} {currency} to {person}.",
     "transfer money"),
    (("currency", "exchange", "money"), "How much is {amount} {currency} in {currency}?",
     "convert currencies"),
    (("tax",), "How much tax do I pay on {amount} {currency}?", "work out taxes"),
    (("loan", "interest", "mortgage"), "What are the rates of a loan of {amount} {currency}?",
     "work out loans"),
    (("tip", "bill"), "How much should I tip on {amount} {currency}?", "work out tips"),
    (("price", "cost", "shop"), "How much does a {thing} cost?", "look up prices"),
    (("shop", "order", "buy", "cart"), "Order {few} of the {thing}s for me.", "order things"),
    (("shipping", "parcel", "package", "order"), "Where is my parcel {identifier}?",
     "track parcels"),
    (("length", "unit", "distance", "mile", "kilometer"), "How many miles are {amount} kilometers?",
     "convert lengths"),
    (("weight", "unit", "pound", "kilogram", "mass"), "What are {amount} pounds in kilograms?",
     "convert weights"),
    (("temperature", "celsius", "fahrenheit"), "Convert {few} degrees Celsius to Fahrenheit.",
     "convert temperatures"),
    (("volume", "liter", "gallon", "cup", "unit"), "How many cups are {amount} liters?",
     "convert volumes"),
    (("speed", "unit"), "What is {amount} km/h in miles per hour?", "convert speeds"),
    (("area", "unit"), "How many acres are {amount} hectares?", "convert areas"),
    (("fuel", "gas", "tank"), "How full is my tank?", "look at a tank"),
    (("calculate", "math", "sum", "add"), "What is {amount} plus {amount}?", "add numbers"),
    (("calculate", "math", "multiply"), "Multiply {few} by {amount}.", "multiply numbers"),
    (("root", "math", "calculate"), "What is the square root of {amount}?", "take roots"),
    (("percent", "percentage", "calculate"), "What is {few} percent of {amount}?",
     "work out percentages"),
    (("average", "mean", "statistics"), "What is the average of {few}, {few} and {few}?",
     "work out averages"),
    (("prime",), "Is {amount} divisible by {few}?", "divide numbers"),
    (("random", "dice"), "Roll a dice for me.", "roll dice"),
    (("translate", "translation", "language"), "Translate '{thing}' into {language}.",
     "translate words"),
    (("define", "definition", "dictionary", "word"), "What does '{thing}' mean?",
     "look up definitions"),
    (("spell", "spelling"), "Check the spelling of my letter.", "check spelling"),
    (("birthday", "calendar", "event"), "When is {person}'s birthday?", "look up birthdays"),
    (("calendar", "meeting", "schedule"), "Put a meeting with {person} on {date}.",
     "change a calendar"),
    (("calendar", "meeting", "schedule"), "What is on my calendar on {date}?",
     "look at a calendar"),
    (("day", "weekday", "date"), "Which weekday was {date}?", "look up weekdays"),
    (("contact", "address", "phone"), "What is {person}'s phone number?", "look up phone numbers"),
    (("music", "song", "play"), "Play a song by {person}.", "play music"),
    (("movie", "film"), "Which films are on in {place} tonight?", "look up films"),
    (("sport", "score", "match"), "Who won the match in {place}?", "look up matches"),
    (("recipe", "cook", "food"), "Find a recipe with {thing}.", "look up recipes"),
    (("calorie", "nutrition", "food"), "How many calories are in {few} apples?",
     "look up calories"),
    (("doctor", "appointment", "health"), "Make an appointment with Dr. {surname}.",
     "make appointments"),
    (("bmi", "body", "weight", "health"), "Is {few} kg too heavy for my age?",
     "judge a weight"),
    (("light", "lamp", "home"), "Turn off the lights in the {room}.", "switch lights"),
    (("thermostat", "heating", "temperature"), "Set the heating to {few} degrees.",
     "set the heating"),
    (("door", "lock"), "Lock the front door.", "lock doors"),
    (("engine", "car", "vehicle"), "Start the engine of my car.", "start a car"),
    (("tire", "pressure", "car", "vehicle"), "Check the pressure of my tires.", "check tires"),
    (("file", "folder", "document"), "Delete the file {path}.", "delete files"),
    (("file", "folder", "document"), "Open {path} and read it to me.", "read files"),
    (("password", "login"), "Change my password.", "change passwords"),
    (("web", "search", "internet"), "Search the web for {thing}.", "search the web"),
    (("picture", "image", "photo", "draw"), "Draw me a picture of a {thing}.", "draw pictures"),
    (("note", "list", "todo"), "Add {thing} to my list.", "keep lists"),
    (("post", "tweet", "social"), "Post '{thing}' on my page.", "post anything"),
    (("user", "account", "profile"), "Who is {person}?", "look up people"),
    (("country", "capital"), "Which language do people speak in {country}?",
     "look up languages"),
    (("history", "year", "date"), "What happened on {date}?", "look up history"),
    (("visa", "passport", "travel"), "Do I need a visa for {country}?", "look up visas"),
)  # fmt: skip
ROOMS = ("kitchen", "bedroom", "hall", "office", "bathroom")
OPENINGS = (
    "Hi,", "Hello,", "Hey,", "Please:", "Okay,", "So,", "Hi there!", "Hello!", "Good morning.",
    "Quick one:", "Sorry to bother you.", "I have a question.", "One more thing:", "Help!",
    "I'm planning a trip.", "My boss wants to know.", "I need this for school.", "I'm in a hurry.",
    "I am filling in a form.", "My friend asked me this.", "I forgot this.", "We have guests.",
    "I'm writing a report.", "I'm on my way home.", "Just checking,", "For my notes:",
)  # fmt: skip
HELD_OPENINGS = ("Excuse me,", "Good evening.", "I can't remember.", "It's for my homework.")
CLOSINGS = (
    "Thanks!", "Thank you.", "Please.", "Just the answer, please.", "I need it today.",
    "It's urgent.", "Thanks in advance.", "No rush.", "I'm curious.",
)  # fmt: skip
HELD_CLOSINGS = ("Cheers!", "That would help me a lot.")
OPENED_SHARE, CLOSED_SHARE, TERSE_SHARE = 0.25, 0.12, 0.12


def draw(
    generator: np.random.Generator, split: str, known: Iterable[str]
) -> tuple[str, str] | None:
    """Return a request of a split and its plain answer; None where the tools name its topic.

    known: the words of the tools' names, descriptions and arguments.
    """
    inside = [one for one in REQUESTS if split_of(f"own/request/{one[1]}") == split]
    topics, request, impossible = pick(generator, inside or REQUESTS)
    stems = {word.rstrip("s") for word in known}
    if stems & set(topics):
        return None
    return _filled(generator, request), f"I have no tool that can {impossible}."


def words_of(*texts: str) -> set[str]:
    """Return the words of names and descriptions."""
    return {word for text in texts for word in words.split_words(text)}


def dressed(
    generator: np.random.Generator, question: str, value_texts: Collection[str], *, held_out: bool
) -> str:
    """Return a question as somebody may write it: after a greeting or a remark, before thanks, or
    without capital letter and full stop.

    value_texts: texts of values, whose capital letters stay.
    """
    if generator.random() < TERSE_SHARE:
        return lower_start(question, value_texts).rstrip(".?")
    if generator.random() < OPENED_SHARE:
        opening = pick(generator, HELD_OPENINGS if held_out else OPENINGS)
        goes_on = opening.endswith((",", ":"))
        question = f"{opening} {lower_start(question, value_texts) if goes_on else question}"
    if generator.random() < CLOSED_SHARE:
        end = "" if question.endswith((".", "?", "!")) else "."
        question = f"{question}{end} {pick(generator, HELD_CLOSINGS if held_out else CLOSINGS)}"
    return question


def lower_start(text: str, value_texts: Collection[str]) -> str:
    """Return a text that begins with a small letter, unless it begins with a value, with "I" or
    with a word in capitals.
    """
    if text.startswith(tuple(value_texts)) or re.match(r"I\b|[A-Z]{2}", text):
        return text
    return text[:1].lower() + text[1:]


def _filled(generator: np.random.Generator, request: str) -> str:
    """Return a request with drawn values."""
    fill = {
        "place": lambda: values.place(generator).text,
        "person": lambda: values.given(generator).text,
        "surname": lambda: values.surname(generator).text,
        "date": lambda: values.date(generator).text,
        "time": lambda: values.time(generator).text,
        "few": lambda: str(int(generator.integers(2, 60))),
        "amount": lambda: values.number(generator).text.lstrip("-"),
        "currency": lambda: pick(generator, words.POOLS["currency"]),
        "country": lambda: pick(generator, words.POOLS["country"]),
        "language": lambda: pick(generator, words.POOLS["language"]),
        "ticker": lambda: pick(generator, words.POOLS["ticker"]),
        "thing": lambda: pick(generator, words.PLAIN),
        "room": lambda: pick(generator, ROOMS),
        "identifier": lambda: values.identifier(generator).text,
        "path": lambda: values.path(generator).text,
    }
    for name, drawn in fill.items():
        while f"{{{name}}}" in request:
            request = request.replace(f"{{{name}}}", drawn(), 1)
    return request
