"""Sentence forms: the many ways in which each attribute is stated in the corpus.

For: `articles.py`, which fills them. A clause starts with its subject, so that it can follow an opener or be joined to
another clause; a sentence stands alone (value first, cleft, reversed); an ask is an indirect question; a quiz is a
direct question. `heldout` clauses and sentences are used only in the held-out articles.

Slots: {s} subject mention (name, 'this whale' or pronoun), {n} full name, {o} object mention, {its}, {the} and {a}
(always singular), {noun}, {v} value, {dim} and {wide} for sizes. <eats|eat> agrees with the article's number.
Value-first forms use a modal, a cleft or a colon, so that they need not know the number of the value.
Refuses: nothing; it is data. Costs: nothing.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Forms:
    """The wordings of one attribute."""

    clauses: tuple[str, ...]
    sentences: tuple[str, ...]
    labels: tuple[str, ...]
    asks: tuple[str, ...]
    quiz: tuple[str, ...]
    heldout: tuple[str, ...]


OPENERS = (
    "As a rule,",
    "Books agree that",
    "Scientists report that",
    "It is well known that",
    "Everyone who studies the sea knows that",
    "Every guide will tell you that",
    "Remember that",
    "It is a fact that",
    "Research shows that",
    "We also know that",
    "Old sailors knew that",
    "The handbook says that",
)

KIND = Forms(
    clauses=(
        "{the} is {v}",
        "{the} is classed as {v}",
        "{the} counts as {v}",
        "{a} is {v}",
        "biologists call {the} {v}",
        "{the} is best described as {v}",
        "{the} is grouped as {v}",
        "in biology, {the} is {v}",
        "{the} can be called {v}",
        "by nature {the} is {v}",
    ),
    sentences=(
        "{v}: that is what {the} is.",
        "Think of {the} as {v}.",
        "If you meet {the}, you have met {v}.",
        "A scientist who sorts sea life would label {the} as {v}.",
        "To call {the} {v} is quite correct.",
        "In a list of sea life, {the} is entered as {v}.",
        "Look at {the} and you are looking at {v}.",
        "What sort of creature is this? {the} is {v}.",
        "Among the many forms of sea life, {the} is {v}.",
        "It is right to speak of {the} as {v}.",
    ),
    labels=("Kind", "Group", "What it is"),
    asks=("what {the} really is", "which group {the} belongs to", "what sort of creature {the} is"),
    quiz=("Into which group do we put {the}?", "Name the group of {the}.", "What would a biologist call {the}?"),
    heldout=("{the} is recognised as {v}", "{the} may be introduced as {v}", "{the} goes down in the books as {v}"),
)

KIND_OF_PLACE = Forms(
    clauses=(
        "{the} is {v}",
        "{a} is {v}",
        "{the} is best described as {v}",
        "{the} can be called {v}",
        "people who study the sea call {the} {v}",
        "in simple words, {the} is {v}",
        "{the} counts as {v}",
        "by nature {the} is {v}",
        "{the} may be pictured as {v}",
        "on a chart of the sea, {the} is {v}",
    ),
    sentences=(
        "{v}: that is what {the} is.",
        "Think of {the} as {v}.",
        "Picture {v}, and you have {the}.",
        "To call {the} {v} is quite correct.",
        "If you visit {the}, you visit {v}.",
        "Look at {the} and you are looking at {v}.",
        "What sort of place is this? {the} is {v}.",
        "Among the many places in the sea, {the} is {v}.",
        "It is right to speak of {the} as {v}.",
        "A map maker would describe {the} as {v}.",
    ),
    labels=("Kind", "Type of place", "What it is"),
    asks=("what {the} really is", "what sort of place {the} is", "how to describe {the}"),
    quiz=("What would a map maker call {the}?", "Describe {the} in a few words.", "What is meant by {the}?"),
    heldout=("{the} is recognised as {v}", "{the} may be introduced as {v}", "{the} goes down in the books as {v}"),
)

FOOD = Forms(
    clauses=(
        "{s} <eats|eat> {v}",
        "{s} <feeds|feed> on {v}",
        "{s} <lives|live> on a diet of {v}",
        "{s} <depends|depend> on {v} for food",
        "{s} <gets|get> {its} energy from {v}",
        "{s} <makes|make> a meal of {v}",
        "{s} mostly <eats|eat> {v}",
        "{s} <takes|take> {v} as food",
        "{s} <is|are> nourished by {v}",
        "the main food of {n} is {v}",
        "the usual diet of {n} is {v}",
        "{s} <grows|grow> strong on {v}",
    ),
    sentences=(
        "{v}: that is what {n} <eats|eat>.",
        "What {n} <eats|eat> is {v}.",
        "It is {v} that {n} <eats|eat>.",
        "On the menu of {n} you will find {v}.",
        "When {n} <feeds|feed>, the meal is {v}.",
        "The diet of {n} consists of {v}.",
        "A meal of {v} is what {n} <needs|need>.",
        "If you wanted to feed {n}, you would offer {v}.",
        "One creature that eats {v} is {the}.",
        "{v} would make a good meal for {n}.",
        "Without {v}, {n} would go hungry.",
    ),
    labels=("Food", "Diet", "Eats"),
    asks=("what {n} <eats|eat>", "what {n} <feeds|feed> on", "which food keeps {n} alive"),
    quiz=("Name the food of {n}.", "What is on the menu of {n}?", "Which meal would please {a}?"),
    heldout=("the daily food of {n} is {v}", "{s} <dines|dine> on {v}", "{s} <survives|survive> on {v}"),
)

HABITAT = Forms(
    clauses=(
        "{s} <lives|live> {v}",
        "{s} <makes|make> {its} home {v}",
        "{s} <is|are> usually found {v}",
        "{s} <spends|spend> most of {its} life {v}",
        "{s} <is|are> at home {v}",
        "{s} can be met {v}",
        "{s} <stays|stay> {v}",
        "the home of {n} is {v}",
        "divers look for {n} {v}",
        "the right surroundings for {n} are {v}",
        "{s} <belongs|belong> {v}",
        "{s} <does|do> best {v}",
    ),
    sentences=(
        "{v}: that is where {n} <lives|live>.",
        "{v} is where {n} <lives|live>.",
        "It is {v} that {n} <lives|live>.",
        "To find {n}, look {v}.",
        "A good place to look for {n} is {v}.",
        "Anyone who searches {v} may meet {the}.",
        "Life {v} suits {n} well.",
        "One creature that lives {v} is {the}.",
        "Where {n} <lives|live> is no secret: {v}.",
        "The kind of place that {n} <needs|need> is found {v}.",
    ),
    labels=("Habitat", "Home", "Surroundings"),
    asks=(
        "what kind of home {n} <has|have>",
        "in what surroundings {n} <lives|live>",
        "what kind of place suits {n}",
    ),
    quiz=("Name the home of {n}.", "What sort of home does {a} choose?", "Where should a diver look for {a}?"),
    heldout=("the everyday home of {n} is {v}", "{s} <dwells|dwell> {v}", "{s} <keeps|keep> house {v}"),
)

RANGE = Forms(
    clauses=(
        "{s} <occurs|occur> {v}",
        "{s} <has|have> {its} home waters {v}",
        "on the world map, {n} <is|are> found {v}",
        "the range of {n} lies {v}",
        "{s} <lives|live> wild {v}",
        "people can see {n} {v}",
        "{s} <is|are> recorded {v}",
        "{s} <is|are> known {v}",
        "the part of the world where {n} <lives|live> is {v}",
        "the population of {n} is spread {v}",
        "{s} <belongs|belong> to waters {v}",
        "{s} <is|are> present {v}",
    ),
    sentences=(
        "{v}: that is the range of {n}.",
        "It is {v} that {n} <occurs|occur>.",
        "{v} is where in the world {n} <lives|live>.",
        "To see {n} in the wild, travel to places {v}.",
        "A map of {n} would be coloured {v}.",
        "A traveller {v} may meet {the}.",
        "One creature found {v} is {the}.",
        "The range of {n}? It lies {v}.",
        "If you want to see {n}, search {v}.",
        "Sightings of {n} come from waters {v}.",
    ),
    labels=("Range", "Part of the world", "Found"),
    asks=("where in the world {n} <lives|live>", "where the range of {n} lies", "which waters {n} <calls|call> home"),
    quiz=("Show on a map where {n} <lives|live>.", "Give the range of {n}.", "Which seas are the home waters of {a}?"),
    heldout=("the home waters of {n} lie {v}", "{s} <ranges|range> {v}", "ships may meet {n} {v}"),
)

SIZE = Forms(
    clauses=(
        "{s} <grows|grow> to about {v} {dim}",
        "{s} <reaches|reach> about {v} {dim}",
        "{s} can measure {v} {dim}",
        "{s} can grow to {v} {dim}",
        "the greatest size of {n} is about {v} {dim}",
        "a very large {name} measures about {v} {dim}",
        "{s} <gets|get> as big as {v} {dim}",
        "{s} can be {v} {wide}",
        "{s} <has|have> a top size of {v} {dim}",
        "{s} seldom <passes|pass> {v} {dim}",
        "{s} <grows|grow> up to {v} {wide}",
        "a record {name} would be around {v} {dim}",
    ),
    sentences=(
        "{v} {dim}: that is how big {n} can grow.",
        "{v} is about the most that {a} will measure {dim}.",
        "At full size, {a} can be {v} {wide}.",
        "Picture something {v} {wide}: that is {a} at its largest.",
        "A ruler of {v} would just measure {a}.",
        "How big is it? {a} can reach {v} {dim}.",
        "The size of {n} is up to {v}.",
        "If you measured a big {name}, you might read {v}.",
        "Fully grown, {a} can reach {v} {dim}.",
        "With a size of up to {v}, {the} is easy to picture.",
    ),
    labels=("Size", "Greatest size", "Measures up to"),
    asks=("how big {n} can get", "how large {a} may grow", "what size {n} can reach"),
    quiz=("Give the size of {a}.", "How much would the biggest {name} measure?", "Guess the measure of {a}."),
    heldout=(
        "{s} can attain {v} {dim}",
        "the size limit of {n} is near {v} {dim}",
        "{s} <ends|end> up about {v} {wide} at most",
    ),
)

TRAIT = Forms(
    clauses=(
        "{s} <is|are> best known for {v}",
        "{s} <is|are> famous for {v}",
        "{s} <stands|stand> out for {v}",
        "what makes {n} special is {v}",
        "the most striking thing about {n} is {v}",
        "{s} <is|are> remarkable for {v}",
        "people remember {n} for {v}",
        "{s} <is|are> noted for {v}",
        "the special mark of {n} is {v}",
        "{s} <surprises|surprise> people with {v}",
        "{s} <owes|owe> {its} fame to {v}",
        "nothing sets {n} apart like {v}",
    ),
    sentences=(
        "{v}: that is what makes {n} special.",
        "{v} would be the first thing to say about {n}.",
        "It is {v} that makes {n} famous.",
        "Think of {v} and you think of {n}.",
        "What stands out about {n} is {v}.",
        "Ask anyone about {n}, and you will hear of {v}.",
        "{the} would not be {the} without {v}.",
        "Nobody forgets this about {n}: {v}.",
        "One thing is typical of {n}: {v}.",
        "The claim to fame of {n} is {v}.",
    ),
    labels=("Known for", "Special feature", "Fame"),
    asks=("what makes {n} special", "why {n} <is|are> so well known", "what is remarkable about {n}"),
    quiz=(
        "Name the special feature of {n}.",
        "What is the claim to fame of {n}?",
        "What sets {n} apart?",
    ),
    heldout=("{s} <is|are> celebrated for {v}", "the hallmark of {n} is {v}", "{s} can be told by {v}"),
)

YOUNG = Forms(
    clauses=(
        "{s} <produces|produce> {v}",
        "{s} <breeds|breed> by producing {v}",
        "when {n} <breeds|breed>, the result is {v}",
        "the family life of {n} begins with {v}",
        "each new generation of {n} begins with {v}",
        "{s} <brings|bring> {v} into the world",
        "{s} <reproduces|reproduce> with {v}",
        "at breeding time, {n} <has|have> {v}",
        "{s} <multiplies|multiply> through {v}",
        "the next generation of {n} comes from {v}",
        "in the breeding season, {n} <produces|produce> {v}",
    ),
    sentences=(
        "{v}: that is how {n} <breeds|breed>.",
        "It is {v} that {n} <produces|produce>.",
        "What {n} <produces|produce> at breeding time is {v}.",
        "{v} would be the sign that {n} <has|have> bred.",
        "For {n}, breeding means {v}.",
        "A breeding {name} has {v}.",
        "With {v}, {n} <keeps|keep> {its} kind going.",
        "The start of life for {n} is {v}.",
        "One creature with {v} is {the}.",
        "Offspring of {n} arrive in this way: {v}.",
    ),
    labels=("Breeding", "Young", "Offspring"),
    asks=("how {n} <breeds|breed>", "what {n} <produces|produce> at breeding time", "how {n} <gets|get> {its} young"),
    quiz=(
        "Describe the offspring of {n}.",
        "What begins the life of {a}?",
        "What does {a} bring into the world?",
    ),
    heldout=("the breeding of {n} leads to {v}", "{s} <passes|pass> on life with {v}", "{s} <yields|yield> {v}"),
)

ENEMY = Forms(
    clauses=(
        "{s} <is|are> threatened by {v}",
        "{s} <is|are> in danger from {v}",
        "{s} <faces|face> danger from {v}",
        "{s} <has|have> much to fear from {v}",
        "{s} <suffers|suffer> losses to {v}",
        "{s} <is|are> at risk from {v}",
        "{s} may be harmed by {v}",
        "what endangers {n} is {v}",
        "a serious danger for {n} is {v}",
        "{s} cannot always escape {v}",
        "trouble comes to {n} from {v}",
        "the threat to {n} comes from {v}",
    ),
    sentences=(
        "{v}: that is the danger for {n}.",
        "{v} can harm {n}.",
        "{v} may put {n} in danger.",
        "It is {v} that can harm {n}.",
        "What can harm {n} is {v}.",
        "Danger comes to {n} from {v}.",
        "{n} would be safer without {v}.",
        "Beware of {v}, one might warn {n}.",
        "If {n} <disappears|disappear> somewhere, think of {v}.",
        "Those who want to protect {n} worry about {v}.",
    ),
    labels=("Threat", "Danger", "Enemy"),
    asks=("what threatens {n}", "what puts {n} in danger", "what {n} <has|have> to fear"),
    quiz=(
        "Name a danger for {n}.",
        "Which threat hangs over {n}?",
        "What does {a} have to fear?",
    ),
    heldout=("{s} <loses|lose> out to {v}", "a known hazard for {n} is {v}", "{s} <is|are> hurt by {v}"),
)

PLACE = Forms(
    clauses=(
        "{s} <is|are> found {v}",
        "{s} <lies|lie> {v}",
        "{s} <occurs|occur> {v}",
        "{s} <is|are> located {v}",
        "the right spot for {the} is {v}",
        "{s} <exists|exist> {v}",
        "explorers find {n} {v}",
        "on the chart, {n} <lies|lie> {v}",
        "{s} can be visited {v}",
        "nature puts {n} {v}",
    ),
    sentences=(
        "{v}: that is where {n} <is|are> found.",
        "It is {v} that {n} <is|are> found.",
        "To find {n}, look {v}.",
        "The place to see {n} is {v}.",
        "Travel and search {v}, and you may find {the}.",
        "One place found {v} is {the}.",
        "Where {n} <lies|lie> is no secret: {v}.",
        "A map of {n} would be coloured {v}.",
        "Somewhere {v} is where you will find {n}.",
    ),
    labels=("Where", "Location", "Found"),
    asks=("where {n} <is|are> found", "where {n} <lies|lie>", "where to look for {n}"),
    quiz=("Show on a chart where {n} <lies|lie>.", "Give the location of {n}.", "Where must we travel to see {a}?"),
    heldout=("{s} <sits|sit> {v}", "the setting of {n} is {v}", "sailors come across {n} {v}"),
)

BUILDER = Forms(
    clauses=(
        "{s} <is|are> formed by {v}",
        "{s} <is|are> built by {v}",
        "{s} <is|are> made by {v}",
        "{s} <owes|owe> {its} existence to {v}",
        "the maker of {n} is {v}",
        "{s} <comes|come> into being through {v}",
        "{s} <is|are> the work of {v}",
        "{s} <is|are> created by {v}",
        "{s} <takes|take> shape because of {v}",
        "there would be no {name} without {v}",
    ),
    sentences=(
        "{v}: that is what forms {n}.",
        "It is {v} that creates {n}.",
        "What builds {n} is {v}.",
        "Without {v}, {n} would not exist.",
        "Behind {n} stands one maker: {v}.",
        "Take away {v} and {n} would be gone.",
        "Look for {v} if you want to know how {n} began.",
        "First comes this: {v}. Then comes {the}.",
    ),
    labels=("Formed by", "Builder", "Origin"),
    asks=("what forms {n}", "what builds {n}", "how {n} <comes|come> to exist"),
    quiz=("Name the maker of {n}.", "What does {a} owe its existence to?", "What stands behind the making of {n}?"),
    heldout=("{s} <has|have> {its} origin in {v}", "{s} <is|are> shaped by {v}", "the cause of {n} is {v}"),
)

RESIDENT = Forms(
    clauses=(
        "{s} <is|are> home to {v}",
        "{s} <shelters|shelter> {v}",
        "{s} <houses|house> {v}",
        "{s} <is|are> inhabited by {v}",
        "visitors to {n} may meet {v}",
        "the typical residents of {n} are {v}",
        "{s} <supports|support> {v}",
        "the animals to look for at {n} are {v}",
        "{s} <is|are> a good place to see {v}",
        "{s} <is|are> the home of {v}",
    ),
    sentences=(
        "{v}: those are the residents of {n}.",
        "{v} can be met at {n}.",
        "It is {v} that you will meet at {n}.",
        "Go to {n} to see {v}.",
        "Life at {n} means life among {v}.",
        "The neighbours at {n} are {v}.",
        "{v} would feel at home at {n}.",
        "Whoever looks for {v} should visit {the}.",
        "Who is at home there? At {n} live {v}.",
    ),
    labels=("Residents", "Animals", "Home to"),
    asks=("who lives at {n}", "which animals {n} <shelters|shelter>", "what there is to meet at {n}"),
    quiz=("Name the residents of {n}.", "Which neighbours would you have at {a}?", "Who feels at home at {n}?"),
    heldout=("{s} <hosts|host> {v}", "{s} <gives|give> a home to {v}", "the tenants of {n} are {v}"),
)

BENEFIT = Forms(
    clauses=(
        "{s} <provides|provide> {v}",
        "{s} <offers|offer> {v}",
        "{s} <gives|give> {v}",
        "the use of {n} is {v}",
        "{s} <matters|matter> because of {v}",
        "the gift of {n} is {v}",
        "{s} <is|are> valued for {v}",
        "{s} <brings|bring> {v}",
        "what {n} <does|do> for the world is {v}",
        "{s} <serves|serve> us and the sea with {v}",
    ),
    sentences=(
        "{v}: that is what {n} <provides|provide>.",
        "It is {v} that {n} <offers|offer>.",
        "What {n} <gives|give> is {v}.",
        "Thanks to {n}, there is {v}.",
        "Without {n}, there would be less of this: {v}.",
        "Protect {n} and you protect {v}.",
        "{v} would be lost without {n}.",
        "Why care about {n}? Because of {v}.",
        "We can thank {n} for {v}.",
    ),
    labels=("Benefit", "Use", "Provides"),
    asks=("what {n} <provides|provide>", "why {n} <matters|matter>", "what good {n} <does|do>"),
    quiz=("Name the gift of {n}.", "What would be lost without {n}?", "Why should we care about {n}?"),
    heldout=("{s} <contributes|contribute> {v}", "the service of {n} is {v}", "{s} <supplies|supply> {v}"),
)

FORMS: dict[str, Forms] = {
    "kind": KIND,
    "kind_of_place": KIND_OF_PLACE,
    "food": FOOD,
    "habitat": HABITAT,
    "range": RANGE,
    "size": SIZE,
    "trait": TRAIT,
    "young": YOUNG,
    "enemy": ENEMY,
    "place": PLACE,
    "builder": BUILDER,
    "resident": RESIDENT,
    "benefit": BENEFIT,
}
