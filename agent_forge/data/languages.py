"""A few plain paragraphs in several languages, written for this project: mixes do not hold them.

They show what a model lost on tokens that are rare in its calibration. Compress calibrates on
conversations in the first languages (kind "languages"); the other languages are in no mix.
"""

# language -> paragraphs, one per held-out split
PARAGRAPHS: dict[str, tuple[str, ...]] = {
    "chinese": (
        "The sign at the door said 今天休息, so we went on to the market and asked for 三斤苹果. The woman "
        "there gave "
        "us four and said 不用谢 before we could thank her. On the way home we wrote down what we had "
        "learned: 谢谢, 再见, 明天, and the word for rain, 雨, which looks like drops behind a window.",
        "早上下了一场小雨，街上的人很少。老王把店门打开，先烧了一壶水，然后把昨天剩下的面粉放在桌上。他的女儿"
        "在城里读书，每个月回家一次。今天是她回来的日子，所以他想做一些她喜欢吃的东西。邻居问他要不要帮忙，他笑着说不用。",
        "河边新修了一座桥，以前要坐船才能到对面的村子。孩子们上学方便多了，种菜的人也可以把菜卖到镇上去。桥不大，"
        "可是很结实。修桥的工人说，他们用了两年时间，因为夏天水太大，只能在冬天和春天工作。",
    ),
    "german": (
        "Am Morgen hatte es geregnet, und die Straße war noch nass. Der alte Bäcker stellte die "
        "Bleche in den Ofen und "
        "öffnete das Fenster. Seine Tochter kam mit dem ersten Zug aus der Stadt; sie blieb nur "
        "bis zum Abend, denn am "
        "nächsten Tag hatte sie eine Prüfung. Er fragte nicht danach, sondern schnitt das Brot "
        "auf.",
        "Die neue Brücke ist nicht groß, aber sie hält. Früher musste man warten, bis der Fährmann "
        "kam, und im Winter kam "
        "er manchmal gar nicht. Jetzt gehen die Kinder zu Fuß zur Schule, und wer Gemüse verkauft, "
        "ist vor acht auf dem Markt.",
        "Am Abend spielten die Nachbarn Karten unter der Lampe. Niemand zählte die Punkte, und wer "
        "verlor, kochte den "
        "Kaffee. Gegen zehn schloss der Bäcker die Tür, denn der Teig für den nächsten Morgen "
        "musste noch geknetet werden.",
    ),
    "russian": (
        "Утром прошёл дождь, и улица была ещё мокрой. Старый пекарь поставил противни в печь и "
        "открыл окно. Его дочь "
        "приехала из города первым поездом и могла остаться только до вечера. Он ничего не "
        "спросил, а нарезал хлеб.",
        "Новый мост небольшой, но прочный. Раньше надо было ждать лодку, а зимой она иногда не "
        "приходила совсем. Теперь "
        "дети ходят в школу пешком, а овощи привозят на рынок рано утром.",
        "Вечером соседи играли в карты под лампой. Очки никто не считал, а проигравший варил чай. "
        "Около десяти "
        "пекарь закрыл дверь: нужно было ещё замесить тесто на утро.",
    ),
    "spanish": (
        "Por la mañana había llovido y la calle seguía mojada. El viejo panadero metió las "
        "bandejas en el horno y abrió la "
        "ventana. Su hija llegó de la ciudad en el primer tren y solo podía quedarse hasta la "
        "noche. Él no preguntó nada; "
        "cortó el pan y puso dos tazas en la mesa.",
        "El puente nuevo no es grande, pero es fuerte. Antes había que esperar la barca, y en "
        "invierno a veces no venía. "
        "Ahora los niños van a la escuela a pie y las verduras llegan temprano al mercado.",
        "Por la noche los vecinos jugaban a las cartas bajo la lámpara. Nadie contaba los puntos, "
        "y quien perdía hacía el "
        "café. Hacia las diez el panadero cerró la puerta, porque aún había que amasar para la "
        "mañana siguiente.",
    ),
}  # fmt: skip

# language -> paragraphs, one per held-out split
IN_NO_MIX: dict[str, tuple[str, ...]] = {
    "arabic": (
        "هطل المطر في الصباح وبقي الشارع مبللا. وضع الخباز العجوز الصواني في الفرن وفتح النافذة. "
        "جاءت ابنته من المدينة "
        "في أول قطار، وكان عليها أن تعود في المساء. لم يسألها عن شيء، بل قطع الخبز وصب الشاي.",
        "الجسر الجديد ليس كبيرا لكنه متين. كان الناس ينتظرون القارب من قبل، وفي الشتاء لم يكن يأتي "
        "أحيانا. أما الآن "
        "فيذهب الأطفال إلى المدرسة مشيا، وتصل الخضار إلى السوق في الصباح الباكر.",
        "في المساء لعب الجيران الورق تحت المصباح. لم يحسب أحد النقاط، ومن خسر أعد القهوة. وقرب "
        "العاشرة أغلق الخباز الباب، "
        "لأن عجين الصباح لم يكن قد أعد بعد.",
    ),
    "greek": (
        "Το πρωί είχε βρέξει και ο δρόμος ήταν ακόμα υγρός. Ο γέρος φούρναρης έβαλε τα ταψιά στον "
        "φούρνο και άνοιξε το "
        "παράθυρο. Η κόρη του ήρθε από την πόλη με το πρώτο τρένο και έπρεπε να φύγει το βράδυ. "
        "Εκείνος δεν ρώτησε τίποτα· "
        "έκοψε το ψωμί.",
        "Η καινούρια γέφυρα δεν είναι μεγάλη, αλλά είναι γερή. Παλιά έπρεπε να περιμένεις τη "
        "βάρκα, και τον χειμώνα "
        "κάποτε δεν ερχόταν. Τώρα τα παιδιά πηγαίνουν στο σχολείο με τα πόδια.",
        "Το βράδυ οι γείτονες έπαιζαν χαρτιά κάτω από τη λάμπα. Κανείς δεν μετρούσε τους πόντους, "
        "και όποιος έχανε έφτιαχνε "
        "τον καφέ. Κατά τις δέκα ο φούρναρης έκλεισε την πόρτα, γιατί έπρεπε ακόμα να ζυμώσει για "
        "το πρωί.",
    ),
    "polish": (
        "Rano padał deszcz i ulica była jeszcze mokra. Stary piekarz wstawił blachy do pieca i "
        "otworzył okno. Jego córka "
        "przyjechała z miasta pierwszym pociągiem i mogła zostać tylko do wieczora. O nic nie "
        "pytał, tylko ukroił chleba i "
        "postawił na stole dwie filiżanki.",
        "Nowy most nie jest duży, ale mocny. Dawniej trzeba było czekać na łódź, a zimą czasem "
        "wcale nie przypływała. Teraz "
        "dzieci chodzą do szkoły pieszo, a warzywa trafiają na targ wcześnie rano.",
        "Wieczorem sąsiedzi grali w karty pod lampą. Nikt nie liczył punktów, a kto przegrał, "
        "parzył kawę. Około dziesiątej "
        "piekarz zamknął drzwi, bo trzeba było jeszcze zagnieść ciasto na rano.",
    ),
    "vietnamese": (
        "Buổi sáng trời mưa, đường phố vẫn còn ướt. Người thợ làm bánh già đặt khay vào lò rồi mở "
        "cửa sổ. Con gái ông từ "
        "thành phố về bằng chuyến tàu đầu tiên và chỉ ở lại đến tối. Ông không hỏi gì, chỉ cắt "
        "bánh mì và rót hai tách trà.",
        "Cây cầu mới không lớn nhưng rất chắc. Trước kia phải chờ đò, mùa đông có khi đò không "
        "đến. Bây giờ trẻ em đi bộ "
        "đến trường, còn rau thì ra chợ từ sáng sớm.",
        "Buổi tối hàng xóm chơi bài dưới ánh đèn. Không ai tính điểm, người thua thì đi pha cà "
        "phê. Khoảng mười giờ ông thợ "
        "làm bánh đóng cửa, vì còn phải nhào bột cho sáng mai.",
    ),
}  # fmt: skip
