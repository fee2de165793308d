"""Words without content of their own, in the languages of most exports: articles, pronouns, fillers."""

from __future__ import annotations

_LISTS = {
    "de": """
        aber alle allem allen aller alles als also alt am an andere anderen auch auf aus bald bei beim bin bis bist bitte da dabei
        dafür dagegen daher dahin damit dann daran darauf daraus darf darin darüber das dass daß davon dazu dein deine deinem deinen
        deiner dem den denen denn der deren des dessen deshalb dich die dies diese diesem diesen dieser dieses dir doch dort du durch
        eben eher eigentlich ein eine einem einen einer eines einfach einmal er erst es etwa etwas euch euer eure eurem euren fast für
        ganz gar gegen gehabt genau gerade gern gerne gibt habe haben habt halt hat hatte hatten hätte hätten her heute hier hin hinter
        ich ihm ihn ihnen ihr ihre ihrem ihren ihrer immer im in indem ins irgendwie ist ja jede jedem jeden jeder jedes jetzt kann
        kannst können könnt könnte kein keine keinem keinen keiner mal man manche mehr mein meine meinem meinen meiner mich mir mit muss
        müssen musst nach nachdem nachher nein nicht nichts noch nun nur ob oder ohne okay schon sehr sei sein seine seinem seinen seiner
        seit selbst sich sie sind so sogar solche soll sollen sollte sondern sonst über um und uns unser unsere unter viel viele vom von vor
        war waren warum was weg weil weiter welche welcher wenn wer werde werden wie wieder wieso will wir wird wirklich wirst wo wohl
        wollen wollte worden würde würden zu zum zur zwar zwischen haha hahaha hab wär wäre hast naja
        """,
    "en": """
        a about after again all also always am an and any are aren't as at back be because been before being but by can can't cause
        come could couldn't cuz did didn't do does doesn't doing don't done dont down each even every few for from get gets getting go
        going gonna good got had has hasn't have haven't having he he's hello her here here's hers hey hi him his how i i'd i'll i'm
        i've if im in into is isn't it it's its just know let let's like lol made make maybe me mine more most much must my myself no
        nope not now of off oh ok okay on once one only or other our ours out over own please really right said same say see she
        she's should shouldn't so some something still such sure than thanks that that's thats the their theirs them then there
        there's these they they're thing things think this those though through to too under until up us very want wanna was wasn't
        we we'll we're we've well were weren't what what's when where which while who who's why will with won't would wouldn't yeah
        yep yes yet you you'd you'll you're you've your yours ya haha hahaha
        """,
    "es": """
        a ahí ahora al algo alguien algún alguna algunas algunos allá allí ante antes aquel aquella aquí así aún aunque bien bueno cada casi
        como cómo con contra creo cual cuál cuando cuándo da de del desde después donde dónde dos el él ella ellas ellos en entonces entre era
        eran eras eres es esa esas ese eso esos esta está están estaba estar estas este esto estos estoy fue fueron gracias ha haber había hace
        hacer han has hasta hay he hoy igual ir jaja jajaja jajajaja la las le les lo los luego más mas me mi mí mío mis misma mismo
        mucha mucho muy nada ni no nos nosotros nuestra nuestro o os otra otro otros para pero poco por porque porqué pues puede puedo que
        qué quien quién quiero sabes se sé ser si sí sido siempre sin sobre sois solo sólo somos son soy su sus suyo también tan tanto te
        tengo tener ti tiene tienes toda todas todavía todo todos tu tú tus tuyo un una unas uno unos usted va vale vamos van veces ver vez
        voy vosotros y ya yo
        """,
    "ar": """
        في من على إلى الى عن مع هذا هذه ذلك تلك هو هي هم نحن أنا انا أنت انت انتي انتم كان كانت يكون تكون ما ماذا لا لم لن ليس نعم قد كل
        أو او ثم أن ان إن إذا اذا لو لكن بس حتى بعد قبل عند عندي عندك كيف متى أين وين ليش لماذا شو ايش مين اللي الذي التي الذين هنا هناك
        يا أي اي غير بين لأن لان كما مثل فقط أيضا ايضا جدا شي شيء يعني طيب اوكي هيك كده كدا ده دي دا مش مو والله وانا وانت ولا وما فيه فيها
        له لها لك لكم لنا لهم به بها منه منها عليه عليها عليك علي اليوم الآن الان هههه ههههه هههههه هه خلاص كمان اه ايوه ايوا
        """,
    "fr": """
        a ai aie ainsi alors après as assez au aucun aussi autre autres aux avais avait avant avec avez avoir avons bah bien bon bref c'est ça
        car ce cela celle celui ces cet cette ceux chez ci comme comment d'accord dans de déjà depuis des deux dire dit dois doit donc dont du
        elle elles en encore entre es est et était étais être eu eux faire fais fait faut fois haha hein hier ici il ils j'ai jamais je j'en
        juste l'a la là le les leur leurs lui ma mais mdr me même merci mes moi moins mon ne ni non nos notre nous on ont ou où oui ouais par
        parce pas peu peut peux plus pour pourquoi pouvez pro puis qu qu'il qu'on quand que quel quelle quelque qui quoi rien sa sais sans se
        sera ses si sinon son sont sous suis sur ta tant te tes toi ton toujours tous tout toute toutes très trop tu un une va vais vas veux
        vers voilà voir vont vos votre vous vraiment y
        """,
    "it": """
        abbiamo adesso ai al alla alle allora altro anche ancora bene c'è che chi ci ciao come con così cosa cui da dai dal dalla dei del della
        delle devo di dopo dove dove è e ecco ed era essere fa fare già gli grazie ha hai hanno ho i il in io la le lei li lo loro lui ma magari
        me meglio mi mia mie miei mio molto ne nei nel nella no noi non nostra nostro nulla o oggi ogni ok oppure per perché però più poco poi
        può puoi qua qualche quale quando quanto quasi quella quelle quello questa queste questi questo qui se sei sempre senza si sì sia sono
        sta stai stato sto su sua sue sui sul sulla suo ti tra tu tua tue tuo tutti tutto un una uno va vabbè vado vai vi voi
        """,
    "pt": """
        a agora aí ainda além algum alguma ali ao aos aquela aquele aqui as às assim até bem bom cada com como da das de dela dele deles demais
        depois do dos e é ela elas ele eles em então entre era essa esse esta está estão estava estou eu faz fazer foi for gente há isso isto já
        kkk kkkk kkkkk la lá lhe mais mas me mesmo meu meus minha muito na não nas nem no nos nós nossa nosso num numa o obrigada obrigado
        oi os ou para pela pelo pode por porque pra pro qual quando que quem quero se sei sem ser será seu seus sim só sobre sou sua suas
        também tão te tem tenho ter teu tinha todo todos tua tudo um uma umas uns vai vamos vc você vocês vou rsrs
        """,
    "nl": """
        aan al alles als altijd ben bij daar dan dat de deze die dit doen door dus echt een eens en er ga gaan gaat geen gewoon goed haar had
        heb hebben hebt heeft heel hem het hier hij hoe hun ik in is ja je jij jou jouw jullie kan komen kun maar me mee meer met mij mijn moet
        na naar nee niet niets nog nou nu of ok om omdat ons ook op over te toch toen tot u uit van veel voor waar waren was wat we weer wel
        weet wie wij wil worden wordt zal ze zei zelf zich zij zijn zo zonder zou
        """,
    "tr": """
        acaba ama ancak artık aslında ben bence beni bile bir biraz biri birşey biz bu bunu çok çünkü da daha de değil diye en evet gibi
        hadi hem hep hiç hala ile için işte kadar ki kim mi mı mu mü nasıl ne neden nerede niye o olan olarak oldu olsun olur ona onlar onu
        sana sen seni siz sonra şey şimdi şu tamam tüm var ve veya ya yani yok zaten
        """,
    "ru": """
        а бы был была были было быть в вам вас ваш весь во вот все всё всего всех вы где да даже для до его ее её если есть еще ещё же за здесь
        и из или им их к как какой когда кто ли лучше меня мне мы на надо нам нас не него нет ни них но ну о он она они оно от по под пока потом
        почему при просто с сам себя сейчас со так такой там тебе тебя теперь то тоже только том тот ты у уже хорошо чего чем что чтобы это этого
        этот я ага ок спасибо будет буду
        """,
    "pl": """
        a ale albo bo był była było być ci co czy dla do go i ich ile im ja jak jakie jest jestem już każdy kiedy kto która które który lub ma
        mam mi mnie może można my na nam nas nie nic nich niż no o od on ona oni po pod przez przy się są tak tam też to tu twój ty tylko tym
        w wiem więc wszystko z za ze że
        """,
    "hi": """
        है हैं था थी थे हो हूँ हूं का की के को में से पर और या भी तो ही ने यह ये वह वो मैं हम तुम आप मेरा मेरी मेरे तेरा क्या क्यों कब कहाँ कैसे कौन नहीं हाँ हां ना
        अब तक कर करना करो गया गई कुछ सब बहुत जो अगर लेकिन फिर यहाँ वहाँ एक hai hain nahi kya toh bhi mein aur haan ho kar
        """,
    "id": """
        ada aja aku anda apa atau bisa dan dari dengan di dia ini itu iya jadi juga kalau kamu kan karena ke kita lagi mau nya saja saya sama
        sudah tapi tidak udah untuk yang ya ga gak nggak
        """,
}
STOP_WORDS = frozenset(word for words in _LISTS.values() for word in words.split())
