"""Own English words by kind, for the sentence generator, and a few own sentences."""


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NAMES = _split(
    "Anna Ben Clara Daniel Emma Frank George Hannah Isaac Julia Kevin Laura Martin Nora Oliver Paul"
    " Rachel Samuel Tom Victor Wendy Alice Robert Susan Peter Mary John Helen David Sarah Lucy Mark"
)
PLACES = _split(
    "London Paris Boston Chicago Texas Dublin Canada Italy Spain Japan Norway Brazil Africa Europe"
    " America England Germany Mexico Denver Madrid Rome Berlin Vienna Oslo Cairo Sydney Toronto"
)
NOUNS = _split(
    "man woman child boy girl friend teacher doctor farmer sailor driver writer singer king queen"
    " soldier baker painter lawyer nurse student pilot captain guest neighbor mother father sister"
    " brother daughter son uncle aunt cousin baby dog cat horse cow sheep bird fish mouse lion bear"
    " wolf fox rabbit duck chicken goat spider bee tree flower grass leaf forest river lake ocean"
    " beach mountain hill valley island desert field garden farm village town city street road"
    " bridge corner market shop store station airport train bus car truck ship boat plane bicycle"
    " wheel engine machine computer phone screen keyboard camera radio clock watch letter word"
    " sentence page book paper pencil story song poem picture painting color number question answer"
    " problem idea plan reason fact secret lesson school class test game team ball race prize gift"
    " party music dance film theater museum church hospital office factory kitchen bedroom window"
    " door wall floor roof room house home bed chair table lamp mirror box bag bottle cup glass plate"
    " knife fork spoon bread butter cheese milk water coffee tea sugar salt apple orange banana lemon"
    " potato tomato onion carrot soup meat egg cake breakfast lunch dinner money coin price bill bank"
    " job work business company manager worker boss meeting paper report project system program"
    " message voice sound noise silence light shadow fire smoke stone rock sand gold silver iron"
    " wood metal plastic cloth shirt coat hat shoe dress pocket button hand finger arm leg foot head"
    " face eye ear nose mouth tooth hair heart brain blood bone skin body life death birth day night"
    " morning evening week month year hour minute second moment summer winter spring autumn weather"
    " rain snow wind storm cloud sky sun moon star world earth country nation government law war"
    " peace army power energy history future science language culture art nature health truth"
    " journey adventure mistake choice chance dream hope fear love anger joy pleasure measure treasure"
    " television garage vision decision judge bridge message village teacher picture nature church"
    " kitchen thing path breath mouth truth month weather feather leather brother ring king song"
)
NOUNS_MANY = _split(
    "men women children people friends teachers doctors farmers students soldiers dogs cats horses"
    " birds trees flowers rivers mountains islands gardens villages cities streets bridges markets"
    " trains cars ships boats planes wheels machines computers phones letters words sentences books"
    " stories songs pictures numbers questions answers problems ideas plans reasons lessons games"
    " windows doors walls rooms houses boxes bags bottles glasses plates knives apples oranges eggs"
    " coins prices workers voices sounds lights shadows stones shoes hands fingers eyes ears teeth"
    " days nights weeks months years hours minutes clouds stars laws dreams mistakes choices things"
)
ADJECTIVES = _split(
    "good bad big small large little long short tall high low old young new great important different"
    " same right wrong early late hard soft easy difficult simple strong weak heavy light dark bright"
    " warm cold hot cool wet dry clean dirty full empty open closed free busy quiet loud fast slow"
    " quick happy sad angry afraid brave calm kind gentle rude honest clever stupid wise foolish rich"
    " poor cheap expensive beautiful ugly pretty lovely strange common rare famous certain possible"
    " impossible real false true serious funny interesting boring useful useless dangerous safe"
    " careful careless patient proud shy tired hungry thirsty sick healthy sharp smooth rough round"
    " square flat deep shallow wide narrow thick thin sweet sour bitter fresh ancient modern public"
    " private local foreign whole broken perfect special usual red blue green yellow white black brown"
    " gray purple golden silver wooden huge tiny enormous gigantic yellow orange purple"
)
VERBS = _split(  # after "can", "will", "to"
    "be have do say make go take come see know get give find think tell become show leave feel put"
    " bring begin keep hold write stand hear let mean set meet run pay sit speak lie lead read grow"
    " lose fall send build understand draw break spend cut rise drive buy wear choose eat drink sleep"
    " wake walk talk work play move live believe happen provide include continue change watch follow"
    " stop create open close allow add offer remember forget consider appear wait serve die expect"
    " stay reach kill remain suggest raise pass sell require report decide pull push carry catch throw"
    " climb swim fly jump dance sing laugh cry smile shout whisper listen answer ask call help need"
    " want like love hate hope try start finish learn teach study explain describe imagine discover"
    " measure judge repair paint cook bake wash clean travel visit return arrive enjoy share choose"
)
VERBS_PAST = _split(  # "the man ... the dog"
    "saw heard found took made gave knew kept held wrote met read lost sent built drew broke cut drove"
    " bought wore chose ate caught threw watched followed stopped opened closed offered remembered"
    " forgot carried pulled pushed called helped needed wanted liked loved hated learned taught studied"
    " explained described imagined discovered measured judged repaired painted cooked washed cleaned"
    " visited enjoyed shared showed left brought felt touched passed sold asked answered moved reached"
)
VERBS_PAST_ALONE = _split(
    "went came ran sat spoke lay grew fell rose slept woke walked talked worked played moved lived"
    " waited died stayed jumped danced sang laughed cried smiled shouted whispered listened started"
    " finished arrived returned disappeared vanished changed stopped traveled began left agreed"
)
VERBS_ING = _split(
    "going coming running sitting speaking reading writing growing falling sleeping walking talking"
    " working playing moving living waiting singing laughing crying smiling shouting listening watching"
    " making taking giving looking thinking trying building driving buying eating drinking cooking"
    " cleaning learning teaching helping leaving swimming flying climbing jumping dancing raining"
)
ADVERBS = _split(
    "very quite really too so rather almost always never often sometimes usually seldom already still"
    " again soon now then here there today tomorrow yesterday tonight quickly slowly quietly loudly"
    " carefully suddenly finally probably perhaps maybe certainly clearly exactly nearly together alone"
    " away back inside outside upstairs everywhere anywhere early late well badly easily hardly gently"
)
DETERMINERS = _split(
    "the the the the a this that my your his her our their every another some no any each"
)
DETERMINERS_MANY = _split(
    "the the these those my your his her our their some many few all most two three"
)
PREPOSITIONS = _split(
    "in on at to from with without under over behind beside between through across along around about"
    " after before during near above below against into onto toward inside outside beyond for of by"
)
PRONOUNS = _split("I you he she it we they someone everybody nobody everyone anyone")
OBJECTS = _split("me you him her it us them everything something nothing anything")
CONJUNCTIONS = _split("and but because so when while if although before after until since or where")
QUESTIONS = _split("what where when why how who which")
MODALS = _split(
    "can could will would should must may might cannot did didn't won't can't shouldn't"
)
BE = (("I", "am"), ("you", "are"), ("he", "is"), ("she", "is"), ("it", "is"), ("we", "are"),
      ("they", "are"), ("I", "was"), ("you", "were"), ("he", "was"), ("it", "was"), ("we", "were"),
      ("they", "weren't"), ("that", "isn't"), ("there", "is"), ("this", "is"))  # fmt: skip
GREETINGS = (
    "Hello", "Hello there", "Good morning", "Good evening", "Good night", "Thank you", "Thanks",
    "Thank you very much", "Yes", "No", "Please", "Sorry", "Excuse me", "Welcome", "Goodbye",
    "How are you", "How do you do", "See you soon", "See you tomorrow", "Of course", "Well done",
    "Wait a minute", "Come in", "Never mind", "I don't know", "I'm not sure", "That's right",
    "It doesn't matter", "Let's go", "Don't worry", "You're welcome", "I'm sorry", "Nice to meet you",
    "What's your name", "My name is Anna", "What time is it", "Happy birthday", "Good luck",
)  # fmt: skip
PROSE = (
    "The quick brown fox jumps over the lazy dog.",
    "This is the small voice that comes with the program.",
    "It was trained on the speech of another program, in about an hour.",
    "A good voice says every word, and says it at the right time.",
    "The first chunk is short, so that you hear something soon.",
    "Write a few words here, and then press the button to hear them.",
    "When the sun came up, the whole valley was white with snow.",
    "Nobody knew where the old man had come from, or why he stayed.",
    "She closed the window, sat down at the table and began to write.",
    "If it rains tomorrow, we will stay at home and play cards.",
    "The train to Boston leaves at seven, but it is often late.",
    "He said that he would call us back within the hour.",
    "There are three things that you should know before you begin.",
    "At the end of the street there is a little shop that sells tea.",
    "The judge measured the damage and gave a calm and careful answer.",
    "They usually watch television in the garage after dinner.",
    "Both of them thought that this was worth the trouble.",
    "Five or six brown leather shoes were lying under the chair.",
    "We are going to need a bigger boat and much better weather.",
    "I would like a cup of coffee with milk and a piece of cake, please.",
    "The server speaks long texts as well, and streams them while it works.",
    "Do you remember the summer when we swam across the lake?",
    "The museum opens at nine and closes at half past five.",
    "No one could explain the strange noise behind the kitchen wall.",
    "Once upon a time there was a king who had no children.",
    "His voice was quiet, but everybody in the room could hear him.",
)
