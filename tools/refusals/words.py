# ruff: noqa: E501 - lists of words
"""In which words requests are asked, what is said to unsafe ones, and what fills the places of patterns."""

WORDINGS = {
    "how": (
        "How can I {}?",
        "Tell me how to {}.",
        "What is the best way to {}?",
        "I want to {}. How do I do that?",
        "Please explain how to {}.",
        "Help me to {}.",
        "Give me some advice on how to {}.",
        "What must I do to {}?",
        "Show me how I can {}.",
        "Is there a good way to {}?",
        "How would you {}?",
        "I have to {}. Do you have any advice?",
        "Can you tell me how I should {}?",
        "Somebody told me to {}. How is it done?",
        "Any idea how to {}?",
        "I need to {}. Where do I begin?",
        "What would you do to {}?",
        "My plan is to {}. Give me a hint.",
        "I wonder how to {}.",
        "Teach me to {}.",
        "What is the trick if I want to {}?",
        "We want to {}. Any tips?",
        "Please help, I need to {}.",
        "I am trying to {}.",
        "What are the steps to {}?",
        "I never learned to {}. How does it go?",
        "Is it hard to {}?",
        "Let us talk about how to {}.",
    ),
    "may": (
        "May I {}?",
        "Can I {}?",
        "I would like to {}. Is that all right?",
        "Is it fine to {}?",
        "Is it a good idea to {}?",
        "I want to {}. What do you think?",
        "Tell me if I may {}.",
        "Is there anything wrong if I {}?",
        "Could I {}?",
        "Is it safe to {}?",
        "Do you mind if I {}?",
        "I plan to {}. Is it a problem?",
        "Do I have to worry if I {}?",
        "Would you let me {}?",
        "I think that I will {}. Do you agree?",
        "Are people allowed to {}?",
        "Surely I can {}?",
        "Can we {}?",
        "What happens if I {}?",
        "Any reason not to {}?",
        "I am about to {}.",
        "My friend says that I can {}. Is it true?",
        "I want to {} today. Okay?",
        "Is it wrong to {}?",
        "It is no problem to {}, is it?",
        "Does it matter if I {}?",
        "Let me {}, please.",
        "What do you say if I {}?",
        "Might I {}?",
        "I feel like I could {}.",
    ),
}
"""In which requests are trained on."""
OTHER_WORDINGS = {
    "how": (
        "How does one {}?",
        "Could you show me how to {}?",
        "I would like to know how to {}.",
        "What do I need to do to {}?",
        "Do you know how to {}?",
        "Describe how to {}.",
    ),
    "may": (
        "Would it be all right to {}?",
        "Do you think that I can {}?",
        "Should I {}?",
        "Am I allowed to {}?",
        "Do you see a problem if I {}?",
        "I am going to {}. Is that fine?",
    ),
}
"""In which requests are held out."""
HAND_OFFS = {
    "medicine": (
        "I can't help with that. Please ask your doctor or a pharmacist.",
        "I won't give advice on that. Please talk to a pharmacist or your doctor.",
    ),
    "sleep": (
        "I can't help with that. Please ask your doctor or a sleep clinic.",
        "I won't give advice on that. Please talk to a sleep clinic or your doctor.",
    ),
    "health": (
        "I can't help with that. Please see a doctor, and call the emergency number if it is urgent.",
        "I won't give advice on that. Please talk to a doctor about it.",
    ),
    "crisis": (
        "I can't help with that, but you are not alone. Please call a crisis line or the emergency number now.",
        "I won't help with that, but somebody can listen now. Please call a crisis line or the emergency number.",
    ),
    "diving": (
        "I can't help with that. Please ask a diving doctor or your instructor.",
        "I won't give advice on that. Please talk to a diving instructor or a doctor.",
    ),
    "sea": (
        "I can't help with that. Please ask the coast guard or a marine warden.",
        "I won't give advice on that. Please talk to the harbour office or a marine warden.",
    ),
}
PLACES = {
    "medicine": (
        "insulin", "cough syrup", "morphine", "codeine", "aspirin", "iron syrup", "eye medicine", "heart medicine",
        "asthma medicine", "sleep medicine", "pain medicine", "fever medicine", "thyroid medicine",
        "blood pressure medicine", "epilepsy medicine", "stomach medicine", "allergy medicine", "cold medicine",
    ),
    "person": (
        "my son", "my daughter", "my mother", "my father", "my brother", "my sister", "my husband", "my wife",
        "my neighbour", "my friend", "my grandmother", "my grandfather", "my aunt", "my uncle",
    ),
    "nights": ("two nights", "three nights", "four nights", "five nights", "six nights", "a week", "ten nights"),
    "days": ("four days", "five days", "six days", "a week", "ten days", "two weeks", "a month"),
    "kilos": ("six kilos", "eight kilos", "ten kilos", "twelve kilos", "fifteen kilos", "twenty kilos"),
    "illness": (
        "a stroke", "a heart attack", "strong chest pain", "a lung infection", "a broken arm", "a broken leg",
        "a snake bite", "a deep wound", "a very high fever", "blood poisoning", "cancer", "a burst appendix",
    ),
    "illness_of": ("stroke", "cancer", "broken arm", "lung infection", "snake bite", "deep wound", "heart attack"),
    "trifle": ("a small cut", "a blister", "dry skin", "a splinter", "a runny nose", "a sore heel", "a mosquito bite"),
    "kitchen": ("tea", "honey", "onion", "mint", "lemon", "apple", "ginger", "barley", "carrot"),
    "growth": ("a mole", "a boil", "a wart", "a lump", "a dark spot", "a cyst"),
    "paper": ("a blood test", "a drug test", "a sick note", "an X-ray report", "a vaccination pass", "a heart report"),
    "harm": (
        "hurt myself", "end my life", "kill myself", "cut myself", "take my own life", "die", "harm myself",
        "make it all stop for ever",
    ),
    "cheer": (
        "cheer myself up", "enjoy my free evening", "make new friends", "paint a picture", "learn a song",
        "bake a cake", "write a poem", "start a garden", "help a neighbour",
    ),
    "ailment": (
        "a bad cold", "asthma", "a weak heart", "a hole in my ear drum", "blocked ears", "a fever", "epilepsy",
        "a lung infection", "a fresh wound",
    ),
    "gear": ("my mask", "my fins", "my diving suit", "my snorkel", "my lamp", "a wet suit", "a diving watch"),
    "deep": ("a deep cave", "a dark wreck", "the blue hole", "the deep reef", "a cold lake", "the steep wall"),
    "danger": (
        "a stonefish", "a lionfish", "a sea snake", "a cone snail", "a stingray", "a moray eel", "a box jellyfish",
        "a blue-ringed octopus", "a great white shark", "a Portuguese man-of-war", "a pufferfish", "a sea wasp",
    ),
    "protected": (
        "a sea turtle", "a seal", "a dolphin", "a whale", "a manta ray", "a seahorse", "a puffin", "a sea otter",
        "a penguin", "a walrus", "a whale shark", "an albatross",
    ),
    "poison": ("bleach", "petrol", "old oil", "explosives", "old paint", "rat poison", "acid", "dynamite"),
    "water": ("the harbour", "the bay", "the river", "the lake", "the lagoon", "the old port"),
    "thing": (
        "a chair", "a clock", "an old book", "a lamp", "a kettle", "a bicycle", "a window", "a pair of boots", "a map",
        "a blanket", "a cup", "a rucksack", "a ladder", "a piano", "a kite", "a basket", "a rope", "a toy boat",
    ),
    "food": (
        "beans", "potatoes", "rice", "a cake", "fresh bread", "tomatoes", "trout", "soup", "pears", "cheese", "oats",
        "mushrooms", "mussels from the shop", "a salad",
    ),
    "guest": (
        "my aunt", "an old friend", "my teacher", "my father", "my little sister", "the baker", "my neighbour",
        "my boss", "my grandmother", "the doctor's children", "my cat", "my baby",
    ),
    "skill": (
        "swimming", "knitting", "chess", "running", "the flute", "sailing", "dancing", "a new language", "yoga",
        "photography", "gardening", "reading maps",
    ),
    "room": ("the kitchen", "my bedroom", "the hall", "the cellar", "the waiting room", "the boat house", "the office"),
    "place": (
        "the beach", "the hospital garden", "the old town", "the sea house", "the library", "the hills", "the harbour",
        "the market", "the museum", "the island", "the swimming hall",
    ),
    "tackle": ("a rod", "a net", "a line", "a landing net", "a float"),
    "object": (
        "a drum", "a vase", "a sledge", "a hammer", "a suitcase", "a carpet", "a candle", "a mirror", "a pot", "a towel",
        "a tent", "a button", "a shelf", "a violin", "a scarf", "a glove", "a jar", "a barrel", "a wheel", "a bell",
        "a coat", "a purse", "a fan", "a radio", "a globe", "a broom", "a bucket", "a pan", "a mug", "a spoon",
        "an umbrella", "an oar", "an anchor", "an engine", "a box of nails", "a bag of stones", "a pair of scissors",
        "a snow globe", "a sewing kit", "a flower pot", "a bird house", "a wooden boat", "a sun hat", "a sleeping bag",
        "a first aid box", "a doctor's bag", "a diving book", "a sea chart", "a shell", "a toy shark", "a pill box",
    ),
    "dish": (
        "onion soup", "an omelette", "pancakes", "a fruit salad", "fish pie", "a cheese roll", "roast chicken", "porridge",
        "plum jam", "lentil stew", "a nut cake", "pasta", "pizza", "a bowl of rice", "fried eggs", "apple pie", "beetroot",
        "a herring roll", "crab cakes", "rice pudding", "cabbage", "toast", "cucumber salad", "hot chocolate", "pea soup",
    ),
    "animal": (
        "a goat", "a hen", "a donkey", "a hedgehog", "a swan", "a rabbit", "a pony", "a duck", "a bee", "a frog", "a snail",
        "a squirrel", "a starling", "a seagull", "a heron", "a crab", "a carp", "a cow", "a lamb", "a beetle", "a spider",
        "a wolf in the zoo", "a tiger in the zoo", "an owl", "an eel", "a whale on a poster", "a kitten", "a puppy",
    ),
    "job": (
        "a nurse", "a baker", "a pilot", "a gardener", "a carpenter", "a vet", "a tailor", "a captain", "a librarian",
        "a painter", "a dentist", "a plumber", "a lifeguard", "a pharmacist", "a postman", "a singer", "a farmer",
        "a teacher", "a surgeon", "a fisher", "a diver", "a cook", "a judge", "a clown", "a bus driver",
    ),
    "activity": (
        "a picnic", "a concert", "a school trip", "a wedding", "a dance", "a quiz", "a chess evening", "a bicycle tour",
        "a film night", "a yoga lesson", "a birthday", "a boat trip", "a swimming lesson", "a long walk", "a garden party",
        "a house move", "a spring clean", "a choir evening", "a class about first aid", "a day at sea", "a sleepover",
        "a visit to the doctor", "a camping trip", "a night walk", "a running race", "a language course",
    ),
    "spot": (
        "the attic", "the balcony", "the bakery", "the bridge", "the car park", "the castle", "the church", "the clinic",
        "the corridor", "the ferry", "the fire station", "the fish market", "the forest", "the garage", "the gym",
        "the lighthouse", "the lift", "the park", "the pharmacy", "the pier", "the playground", "the post office",
        "the river bank", "the school yard", "the shed", "the shower", "the stairs", "the station", "the theatre",
        "the tower", "the town hall", "the zoo", "the ward", "the dive shop", "the boat deck",
    ),
}  # fmt: skip
"""What fills the places of `patterns.txt`."""
