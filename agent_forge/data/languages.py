"""A few plain paragraphs in several languages, written for this project: text that no training mix holds.

They show what a model lost on tokens that are rare in its calibration.
"""

# language -> paragraphs
PARAGRAPHS: dict[str, tuple[str, ...]] = {
    "chinese": (
        "早上下了一场小雨，街上的人很少。老王把店门打开，先烧了一壶水，然后把昨天剩下的面粉放在桌上。他的女儿"
        "在城里读书，每个月回家一次。今天是她回来的日子，所以他想做一些她喜欢吃的东西。邻居问他要不要帮忙，他笑着说不用。",
        "河边新修了一座桥，以前要坐船才能到对面的村子。孩子们上学方便多了，种菜的人也可以把菜卖到镇上去。桥不大，"
        "可是很结实。修桥的工人说，他们用了两年时间，因为夏天水太大，只能在冬天和春天工作。",
        "The sign at the door said 今天休息, so we went on to the market and asked for 三斤苹果. The woman there gave "
        "us four and said 不用谢 before we could thank her. On the way home we wrote down what we had "
        "learned: 谢谢, 再见, 明天, and the word for rain, 雨, which looks like drops behind a window.",
    ),
    "german": (
        "Am Morgen hatte es geregnet, und die Straße war noch nass. Der alte Bäcker stellte die Bleche in den Ofen und "
        "öffnete das Fenster. Seine Tochter kam mit dem ersten Zug aus der Stadt; sie blieb nur bis zum Abend, denn am "
        "nächsten Tag hatte sie eine Prüfung. Er fragte nicht danach, sondern schnitt das Brot auf.",
        "Die neue Brücke ist nicht groß, aber sie hält. Früher musste man warten, bis der Fährmann kam, und im Winter kam "
        "er manchmal gar nicht. Jetzt gehen die Kinder zu Fuß zur Schule, und wer Gemüse verkauft, "
        "ist vor acht auf dem Markt.",
    ),
    "russian": (
        "Утром прошёл дождь, и улица была ещё мокрой. Старый пекарь поставил противни в печь и открыл окно. Его дочь "
        "приехала из города первым поездом и могла остаться только до вечера. Он ничего не спросил, а нарезал хлеб.",
        "Новый мост небольшой, но прочный. Раньше надо было ждать лодку, а зимой она иногда не приходила совсем. Теперь "
        "дети ходят в школу пешком, а овощи привозят на рынок рано утром.",
    ),
    "spanish": (
        "Por la mañana había llovido y la calle seguía mojada. El viejo panadero metió las bandejas en el horno y abrió la "
        "ventana. Su hija llegó de la ciudad en el primer tren y solo podía quedarse hasta la noche. Él no preguntó nada; "
        "cortó el pan y puso dos tazas en la mesa.",
        "El puente nuevo no es grande, pero es fuerte. Antes había que esperar la barca, y en invierno a veces no venía. "
        "Ahora los niños van a la escuela a pie y las verduras llegan temprano al mercado.",
    ),
}  # fmt: skip
