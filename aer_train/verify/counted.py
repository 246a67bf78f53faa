"""Words beside a number that say what is counted: they change nothing, 18 eggs are 18. Any other word is no unit.

A closed list, because an open one would take 5 wrong, 5 tenths and 5 never for 5. The words are those of school problems.
"""

from __future__ import annotations

_NOUNS = """
accident acid acorn acre acrobat act action activity actor adult air airplane album alligator animal answer ant antelope apartment app
appetizer apple apron aquarium area arm arrangement arrow article artist assignment asteroid athlete atom attempt attendee aunt author
avocado award baboon baby backpack bacterium badger bag bagel baker bale ball ballet balloon banana band bandage bandit bank bar barber
barley barrel baseball basket basketball bat batch bath batter battery beach bead beaker beam bean bear bed bee beef beer beetle bell belt
bench berry bicycle bike bill bird birthday biscuit bison block blood blossom blouse blueberry boat bolt bone bonus book bookmark boot
bottle bouncer bouquet bowl box boy bracelet branch bread break brick bridge broccoli brochure brother brownie brush bucket bug builder
building bulb bun bunch bundle bunny burger bus bush bushel business butcher butter butterfly button byte cabbage cabin cabinet cable cake
calculator calf call camel camera camp camper can candidate candle candy cannoli cantaloupe cap car carat card cardboard carnation
carpenter carpet carrot cart carton cartoon case cashier cat caterpillar ceiling celery cell cement centipede century cereal chair
chameleon champion change chapter character charm check cheese cheesecake cheetah chef cherry chestnut chick chicken child children chip
chocolate choice chore cinnamon circle citizen city clap class classmate classroom clerk client clip clock closet cloth cloud
clove clover clown clue coach coat cobra cocoa coconut coffee coin cola collar collection collector color column combination comet comic
commercial committee component computer concert concrete cone configuration constant consumer contact container contest
contestant cookie cop copper copy corn corner costume cottage couch counselor country couple coupon course cousin cow coyote crab cracker
crane crate crayon cream cricket crocodile croissant crop crow crown cruise crystal cube cup cupcake curtain customer cut cycle cyclist
cylinder daisy dancer daughter death decade deck decoration deer defect delegate delivery dent dentist desk dessert detective diagonal
diamond diary dice difference digit dime dinner dinosaur director dirt discount dish divisor doctor dog doll dollhouse dolphin domino
donation donkey donor donut door dot dough doughnut dove dragon dragonfly drawer drawing dress drink driver drop drum drummer duck
dumpling dvd eagle ear earring edge editor egg electrician electron element elephant elf employee end enemy engine engineer entry envelope
episode equation eraser error essay event exam exercise explorer eye fabric face factor factory family fan farm farmer farmhand
father feather feed female fence ferret fertilizer figure figurine file film finch finger fire firefighter firework fish fisherman flag
flamingo flashlight flavor flea flight flip floor flour flower fly flyer folder follower food foot football forest fork fossil foul fox
fraction frame freshman freshmen friend frog frosting fruit fuel function game garden gardener garlic garment gas gasoline gate gazelle
gecko geese gem gemstone gene generation gerbil ginger giraffe girl glass glove gnome goal goat goldfish golf goose gopher gorilla
grain grandchild grandchildren grape grapefruit graph grass grasshopper gravel group guard guest guitar gull gumball guppy guy haircut ham
hamburger hammer hamper hamster hand handbag handout handshake hat hay head headband hen herb heron hexagon hiker hill hippo hit hive hole
holiday home homework honey hoodie hoop hop horse hospital hotdog hotel house household human hunter hyena ice icicle icing idea iguana
individual ingredient inhabitant insect inspector integer intersection interval invitation ion iron island issue item jacket jaguar
janitor jar jean jelly jellybean jellyfish jersey jewel job jogger joke journal judge jug juice jump kale kangaroo ketchup key keyboard
kid kind king kitchen kite kitten kiwi knife knight koala ladder lady lake lamb lamp land lantern lap laptop lawn lawyer
layer leaf leaflet league leather lecture leg lego lemon lemonade lemur length leopard lesson letter lettuce level library
lifeguard light lightbulb lily lime line lion liquid list lizard llama load loaf lobster location log lollipop loop lot lumber
lunch lynx macaron machine magazine magnet magpie mailbox male mammal man mango mansion map marathon marble mark marker market marshmallow
mask match matchbox mate meal meat meatball mechanic medal medicine meeting melon member men menu message mice microphone milk milkshake
miner minnow mirror missile mistake mixture model mole molecule moment money monkey monster moon moose mosquito mother motorcycle mountain
mouse mouth move movie mud muffin mug mulch mule mushroom musician mussel mustard nail name napkin necklace necktie needle neighbor nephew
nest net neutron newsletter newspaper newt nickel night ninja node noodle note notebook novel number nurse nut oak oats object ocean
octopus office officer oil omelet onion operation option orange orangutan orchid order ordering organ orphan ostrich otter outcome outfit
owl owner ox oxen oyster pack package packet page pail paint painter painting pair pairing palm pamphlet pan pancake panda panel pant
panther paper paperclip parakeet parent park parrot part participant partner party passenger password pasta pastry path patient
patron pattern peach peacock peanut pear pearl pebble pen penalty pencil penguin penny pentagon people pepper permutation person
pet petal phone photo photograph photographer photon pickle picture pie piece pig pigeon piglet pile pill pillow pilot pin
pineapple pint pipe pitcher pixel pizza place plan plane planet plank plant plate player playlist plum plumber podcast poem poet point
pole policeman polygon pond pony pool popsicle porcupine pork portion position possum post postcard poster pot potato practice
present president primate prime prince princess prize problem product professor program project proton puma pumpkin puppy purchase purse
pushup puzzle quail quark quart queen question quilt quiz rabbit raccoon race racer radish raffle rain raisin ram ramp rapper raspberry
rat rate raven reading rebound recipe record rectangle referee reindeer relative report reporter reptile resident restaurant reward rhino
ribbon rice ride rider ring river road robin robot rock rocket rodent roll room roommate rooster root rope rose round route row rug ruler
run runner sack sail sailor salad sale salesman salmon salt sand sandwich sapling satellite sauce sausage scarf school scientist
scone scoop scorpion seahorse seal seashell season seat secretary section seed seedling selection senator senior sentence sequence series
servant serving session set setting shape share shark shed sheep sheet shelf shell sheriff ship shirt shoe shop shot shovel shower
shrimp sibling side sign singer sink sister site situp skateboard sketch skip skirt skunk sleep slice slide slip slipper slot sloth
smartphone snack snail snake snapper sneaker snow snowball snowflake snowman soap sock soda sofa soil soldier solution song sophomore soup
souvenir soybean space sparrow spatula specimen spider spinach spoke sponge spoon spot sprint squad square squash squid squirrel stack
stadium staff stage stair stall stallion stamp stand star state station statue steak steel stem step stick sticker stock stone stop store
story straw strawberry stream street string stripe student subject subset sugar suit suitcase sundae sunflower surgeon swan sweater sweet
swimmer swine symbol syrup table tablet tadpole tail tailor tank tape tapir target task taxi tea teacher teacup team technician teddy
teeth tenant tent term termite test text theater thief thread ticket tie tiger tile timber time tin tip tire toad toast tofu token
tomato tool tooth toothbrush toothpick top topping tortoise toucan touchdown tourist towel tower town toy track trader trail
train trainer trash tray treasure treat tree trial triangle trip triple triplet troll trophy trout truck truffle trumpet trunk tshirt tub
tube tulip tuna tuple turkey turn turtle tutor tv type umbrella uncle unicorn uniform unit urchin user vacation valley value van vanilla
vase vegetable vehicle vendor verb vertex vertices veteran video villager vine vinegar violin viper visit visitor vodka volume volunteer
vote voter vulture wagon waiter wall wallet walrus warrior washer wasp watch water watermelon wave way weasel web website weed weight
whale wheat wheel wheelbarrow whiskey whistle widget wife win window wine wing winner wipe wire wizard wolf woman wombat
women wood word work worker workout worm wrapper wrench wrestler writer yak yarn yeast yogurt zebra zoo zucchini
listener tractor
"""
NOUNS = frozenset(_NOUNS.split())
"""In the singular, or in a plural that `singulars` does not know."""

_DESCRIBING = """
additional ago altogether apart apiece approximately available average away black blank blue broken brown chosen cooked
correct deep different distinct dollar earned empty entire extra favorable foreign free fresh full gold golden good gray green grey
high hot identical large later left little long needed new non-empty old open ordered original pink plastic
possible purple red remaining ripe rounded saved short silver small sold special spent tall thick total unique unordered
used valid white whole wide wooden yellow young
"""
DESCRIBING = frozenset(_DESCRIBING.split())
"""Words that may stand before or behind a counted noun, and are none themselves."""

_SMALL = "a an the of per each every all in for on at his her its their our your my"
SMALL = frozenset(_SMALL.split())
"""Words between the others."""


BEFORE_NOUNS = {"more", "fewer", "positive", "negative", "odd", "even", "prime", "real", "complex", "rational"}
"""Words that are harmless before a noun only: 5 more apples are 5, 5 or more are not."""


def is_counted(word: str) -> bool:
    """Whether a word in lower case belongs to what is counted."""
    return word in SMALL or word in DESCRIBING or word in BEFORE_NOUNS or is_noun(word)


def is_noun(word: str) -> bool:
    """Whether a word in lower case, singular or plural, names what is counted."""
    return bool(NOUNS.intersection(singulars(word)))


def singulars(word: str) -> list[str]:
    """The words that this may be a plural of, itself among them."""
    found = [word]
    if word.endswith("s") and len(word) > 3:
        found.append(word[:-1])
        if word.endswith("es"):
            found.append(word[:-2])
        if word.endswith("ies"):
            found.append(word[:-3] + "y")
        if word.endswith("ves"):
            found += [word[:-3] + "f", word[:-3] + "fe"]
    return found
