"""Own words and sentences in the other languages. Small lists: the dictionaries of Debian add the rest."""

PEOPLE = {
    "es": "la niña|el niño|mi madre|tu padre|el profesor|la doctora|nuestro vecino|una mujer|un hombre|ella|él|Ana|"
          "Carlos|la reina|el rey|los niños|mis amigos|el perro|la gata|el pescador|la abuela|el jefe|usted|nadie",
    "pt": "a menina|o menino|minha mãe|teu pai|o professor|a médica|nosso vizinho|uma mulher|um homem|ela|ele|Ana|"
          "João|a rainha|o rei|as crianças|meus amigos|o cachorro|a gata|o pescador|a avó|o chefe|você|ninguém",
    "fr": "la fille|le garçon|ma mère|ton père|le professeur|la voisine|notre ami|une femme|un homme|elle|il|Anne|"
          "Jean|la reine|le roi|les enfants|mes amis|le chien|la chatte|le pêcheur|la grand-mère|le chef|on|personne",
    "ko": "아이는|어머니는|아버지는|선생님은|의사는|친구는|이웃은|여자는|남자는|그는|그녀는|왕은|강아지는|고양이는|할머니는|"
          "할아버지는|우리는|저는|학생은|작가는|가수는|손님은|누나는|형은|동생은",
}  # fmt: skip
VERBS = {
    "es": "compró|vendió|encontró|quiere|necesita|busca|mira|escucha|abre|cerró|perdió|escribe|leyó|come|bebió|"
          "lleva|trajo|conoce|recuerda|olvidó|pinta|cantó|prefiere|muestra|guardó|rompió|cuenta|paga",
    "pt": "comprou|vendeu|encontrou|quer|precisa ver|procura|olha|escuta|abre|fechou|perdeu|escreve|leu|come|bebeu|"
          "leva|trouxe|conhece|lembra|esqueceu|pinta|cantou|prefere|mostra|guardou|quebrou|conta|paga",
    "fr": "achète|a vendu|a trouvé|veut|cherche|regarde|écoute|ouvre|a fermé|a perdu|écrit|lit|mange|a bu|porte|"
          "apporte|connaît|oublie|peint|chante|préfère|montre|garde|a cassé|raconte|paie|aime|déteste",
    "ko": "샀습니다|팔았습니다|찾았어요|좋아합니다|원해요|봅니다|들었어요|열었습니다|닫았어요|잃어버렸습니다|씁니다|읽었어요|"
          "먹습니다|마셨어요|가져왔습니다|알아요|기억합니다|잊었어요|그립니다|만들었습니다|보여 줍니다|지켰어요",
}  # fmt: skip
THINGS = {
    "es": "una casa|el libro|la puerta|un coche rojo|las llaves|la carta|el pan|una manzana|mucha agua|el reloj|"
          "la canción|un árbol viejo|la mesa|una historia|el dinero|la ventana|un regalo|el camino|la luz|su voz|"
          "el jardín|una guitarra|los zapatos|el queso|la verdad|un secreto|el periódico|la ciudad|una cerveza",
    "pt": "uma casa|o livro|a porta|um carro vermelho|as chaves|a carta|o pão|uma maçã|muita água|o relógio|"
          "a canção|uma árvore velha|a mesa|uma história|o dinheiro|a janela|um presente|o caminho|a luz|sua voz|"
          "o jardim|um violão|os sapatos|o queijo|a verdade|um segredo|o jornal|a cidade|uma cerveja|o coração",
    "fr": "une maison|le livre|la porte|une voiture rouge|les clés|la lettre|du pain|une pomme|de l'eau|la montre|"
          "la chanson|un vieil arbre|la table|une histoire|l'argent|la fenêtre|un cadeau|le chemin|la lumière|sa voix|"
          "le jardin|une guitare|les chaussures|le fromage|la vérité|un secret|le journal|la ville|un bon vin|l'oiseau",
    "ko": "집을|책을|문을|빨간 차를|열쇠를|편지를|빵을|사과를|물을|시계를|노래를|오래된 나무를|이야기를|돈을|창문을|"
          "선물을|길을|빛을|목소리를|정원을|기타를|신발을|치즈를|진실을|비밀을|신문을|커피를|꽃을|그림을|바다를",
}  # fmt: skip
PLACES = {
    "es": "en la calle|por la mañana|con mi hermano|cerca del río|después de la cena|en el pueblo|hoy|mañana|ayer|"
          "sin hablar|para su hija|muy despacio|otra vez|al lado del mar|en un año|a las cinco|todos los días|",
    "pt": "na rua|de manhã|com meu irmão|perto do rio|depois do jantar|na aldeia|hoje|amanhã|ontem|sem falar|"
          "para sua filha|muito devagar|outra vez|ao lado do mar|em um ano|às cinco|todos os dias|",
    "fr": "dans la rue|le matin|avec mon frère|près de la rivière|après le dîner|au village|aujourd'hui|demain|hier|"
          "sans parler|pour sa fille|très lentement|encore une fois|à côté de la mer|dans un an|à cinq heures|",
    "ko": "오늘|내일|어제|아침에|학교에서|강 옆에서|저녁에|마을에서|다시|천천히|함께|혼자|매일|바닷가에서|집에서|시장에서|",
}  # fmt: skip
PHRASES = {
    "es": "Hola|Buenos días|Buenas noches|Muchas gracias|Por favor|Lo siento|Hasta mañana|¿Cómo estás?|¿Qué hora es?|"
          "¡Claro que sí!|No lo sé|Me llamo Ana|¿Dónde está la estación?|El zorro marrón salta sobre el perro perezoso|"
          "Esta es la voz pequeña del programa|Hace mucho calor esta tarde|¿Puede usted ayudarme?|Sí|No|Adiós",
    "pt": "Olá|Bom dia|Boa noite|Muito obrigado|Por favor|Desculpe|Até amanhã|Como você está?|Que horas são?|"
          "Claro que sim!|Não sei|Meu nome é Ana|Onde fica a estação?|A raposa marrom pula sobre o cão preguiçoso|"
          "Esta é a pequena voz do programa|Faz muito calor esta tarde|Você pode me ajudar?|Sim|Não|Adeus",
    "fr": "Bonjour|Bonsoir|Bonne nuit|Merci beaucoup|S'il vous plaît|Je suis désolé|À demain|Comment allez-vous?|"
          "Quelle heure est-il?|Bien sûr!|Je ne sais pas|Je m'appelle Anne|Où est la gare?|Oui|Non|Au revoir|"
          "Le renard brun saute par-dessus le chien paresseux|Voici la petite voix du programme|Il fait très chaud|"
          "Pouvez-vous m'aider?|Qu'est-ce que c'est?|Il y a beaucoup de monde ici",
    "ko": "안녕하세요|안녕히 가세요|감사합니다|고맙습니다|미안합니다|반갑습니다|좋은 아침입니다|지금 몇 시예요?|네|아니요|"
          "잘 모르겠어요|제 이름은 안나입니다|역이 어디에 있어요?|이것은 프로그램의 작은 목소리입니다|오늘은 날씨가 좋아요|"
          "도와주시겠어요?|만나서 반갑습니다|내일 또 봐요|맛있게 드세요|한국어를 배우고 있어요",
}  # fmt: skip
AND = {"es": (" y ", ", pero ", " porque "), "pt": (" e ", ", mas ", " porque "), "fr": (" et ", ", mais ", " parce que "), "ko": (". ", ", 그리고 ", ". 그래서 ")}  # fmt: skip
